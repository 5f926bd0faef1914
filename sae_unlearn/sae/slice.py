"""The rows of an autoencoder that a few features need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae.equations import EPSILON, affine_encode, jumprelu
from sae_unlearn.sae.validate import check_dimensions, check_tensor


def check_feature_ids(feature_ids: Iterable[int], d_sae: int | None = None) -> list[int]:
    """`feature_ids` as a list of int: non-empty, unique, and in [0, d_sae) where d_sae is given.

    Raises:
        TypeError: an id is not an integer.
        ValueError: no ids, an id twice, or an id out of range.
    """
    if isinstance(feature_ids, (str, bytes)) or not isinstance(feature_ids, Iterable):
        raise TypeError(f"feature_ids must be a list of integers, got {feature_ids!r}")
    ids: list[int] = []
    for value in feature_ids:
        if isinstance(value, bool):
            raise TypeError(f"feature id {value!r} is a bool; pass integers, not a mask")
        try:
            ids.append(value.__index__())
        except (AttributeError, TypeError):
            raise TypeError(f"feature id {value!r} is not an integer; pass ids such as [3, 14, 15]") from None
    if not ids:
        raise UnlearnError("feature_ids is empty; name at least one feature")
    upper = "" if d_sae is None else f" and below d_sae={d_sae}"
    wrong = [i for i in ids if i < 0 or (d_sae is not None and i >= d_sae)]
    if wrong:
        raise UnlearnError(f"feature ids {wrong[:5]} are out of range; expected ids from 0 up{upper}")
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise UnlearnError(f"feature ids {twice[:5]} occur more than once; name each feature once")
    return ids


def not_sliceable(k: int | None, d_sae: int, mend: str) -> str:
    """Why an SAE that is not `exact_in_slices` cannot be sliced exactly, and what can be done.

    Args:
        k: of a topk SAE; None for one whose input is normalised.
        mend: what the caller offers beside another SAE.
    """
    if k is None:
        return (
            "an SAE with input_norm='layer' cannot be sliced exactly: each token's standard deviation is taken out of "
            f"its input. Use an SAE without normalised inputs, or {mend}"
        )
    return (
        f"a topk SAE (k={k}) cannot be sliced exactly: which features are active depends on the pre-activations of all "
        f"{d_sae}. Use an SAE whose features decide on their own (standard, jumprelu, gated, batchtopk), or {mend}"
    )


def at_one_deviation(W_enc: torch.Tensor, W_dec: torch.Tensor, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices `[d_in, N]` and `[N, d_in]` with which an SAE with normalised inputs reads `h` itself, if every
    token's standard deviation were `std`: the mean is taken out exactly, since

        (h - mean(h)) @ W = h @ (W - mean over d_in of W)
    """
    return (W_enc - W_enc.mean(dim=0)) / (std + EPSILON), W_dec * std


@dataclass(frozen=True, eq=False)
class SAESlice:
    """The part of an SAE that computes N chosen features, and their decoder directions.

    For architectures where every feature is decided on its own (ReLU, JumpReLU, gated, BatchTopK at inference) this is
    exact: `slice.encode(h)` equals `sae.encode(h)[..., feature_ids]` up to the rounding of the matmul. Of a topk SAE,
    and of one with normalised inputs, it is an approximation, with thresholds that whoever asked for it chose.

    Attributes:
        feature_ids: the N features' indices in the SAE, in the order of the columns.
        W_enc: encoder columns [d_in, N].
        b_enc: encoder biases [N].
        threshold: thresholds [N], >= 0; zeros for a ReLU SAE.
        W_dec: decoder rows [N, d_in].

    Raises:
        ValueError: shapes, dtypes or values do not fit together.
    """

    feature_ids: list[int]
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    threshold: torch.Tensor
    W_dec: torch.Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature_ids", check_feature_ids(self.feature_ids))
        d_in, n = check_dimensions(self.W_enc)
        if n != len(self.feature_ids):
            raise UnlearnError(f"W_enc has {n} columns for {len(self.feature_ids)} feature ids; expected as many")
        check_tensor("W_enc", self.W_enc, (d_in, n))
        for name, shape in (("b_enc", (n,)), ("threshold", (n,)), ("W_dec", (n, d_in))):
            check_tensor(name, getattr(self, name), shape, self.W_enc.dtype)
        if bool((self.threshold < 0).any()):
            raise UnlearnError("threshold holds negative values; expected thresholds >= 0 (clamp them at 0)")

    def encode(self, h: torch.Tensor) -> torch.Tensor:
        """Activations of the N features: [..., d_in] -> [..., N] >= 0, in the slice's dtype.

            pre = h @ W_enc + b_enc ;  a = relu(pre) * (pre > threshold)

        Raises:
            ValueError: the last dimension of `h` is not d_in.
        """
        return jumprelu(affine_encode(h, self.W_enc, self.b_enc), self.threshold)
