"""`SAESlice`: the weights of a few features of an autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae.equations import EPSILON, affine_encode, jumprelu
from sae_unlearn.sae.validate import check_dimensions, check_tensor


def check_feature_ids(feature_ids: Iterable[int], d_sae: int | None = None) -> list[int]:
    """Return `feature_ids` as a list of int: non-empty, unique, and in [0, d_sae) if d_sae is passed.

    Raises:
        UnlearnError: If it is empty, or has an id that is not an integer, occurs twice or is out of range.
    """
    if isinstance(feature_ids, (str, bytes)) or not isinstance(feature_ids, Iterable):
        raise UnlearnError(f"feature_ids={feature_ids!r:.80}: expected a list of integers.")
    ids: list[int] = []
    for value in feature_ids:
        if isinstance(value, bool):
            raise UnlearnError(f"feature_ids: expected integers, got {value!r}. Pass ids, not a mask.")
        try:
            ids.append(value.__index__())
        except (AttributeError, TypeError):
            raise UnlearnError(
                f"feature_ids: expected integers, got {value!r}. Pass ids such as [3, 14, 15]."
            ) from None
    if not ids:
        raise UnlearnError("feature_ids: expected at least one id, got none.")
    upper = "" if d_sae is None else f" and below d_sae={d_sae}"
    wrong = [i for i in ids if i < 0 or (d_sae is not None and i >= d_sae)]
    if wrong:
        raise UnlearnError(f"feature_ids: expected ids of at least 0{upper}, got {wrong[:5]}.")
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise UnlearnError(f"feature_ids: expected each id once, got {twice[:5]} more than once.")
    return ids


def not_sliceable(k: int | None, d_sae: int, fix: str) -> str:
    """Return the error for an SAE that is not `exact_in_slices`: the reason and the fix.

    Args:
        k (int or None): k of a topk SAE; None for an SAE with normalized inputs.
        d_sae (int): Number of features.
        fix (str): The caller's alternative to another SAE, in the imperative.
    """
    if k is None:
        return (
            "An SAE with input_norm='layer' cannot be sliced exactly: each token is divided by its standard deviation. "
            f"Use an SAE without input_norm, or {fix}."
        )
    return (
        f"A topk SAE (k={k}) cannot be sliced exactly: whether a feature is active depends on all {d_sae}. Use an SAE "
        f"with a threshold per feature, or {fix}."
    )


def exact_in_slices(architecture: str, input_norm: str | None) -> bool:
    """Return True if each feature depends only on the input and its own column."""
    return architecture != "topk" and input_norm != "layer"


def check_slice_settings(
    architecture: str,
    k: int | None,
    d_sae: int,
    input_norm: str | None,
    threshold: torch.Tensor | None,
    std: float | None,
) -> None:
    """Raise unless `threshold` and `std` are passed exactly if a slice of such an SAE needs them.

    Raises:
        UnlearnError: If one is missing, or passed without need.
    """
    exact, normed = exact_in_slices(architecture, input_norm), input_norm == "layer"
    if not exact and (threshold is None or (normed and std is None)):
        also = " and std=" if normed else ""
        fix = f"keep the whole SAE, or pass threshold= [N]{also} for an approximate slice"
        raise UnlearnError(not_sliceable(k, d_sae, fix))
    if exact and threshold is not None:
        raise UnlearnError(f"threshold: expected None for architecture={architecture!r}, which is sliced exactly.")
    if not normed and std is not None:
        raise UnlearnError(f"std={std!r}: expected None unless input_norm='layer'.")


def at_one_deviation(W_enc: torch.Tensor, W_dec: torch.Tensor, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `W_enc [d_in, N]` and `W_dec [N, d_in]` of an SAE with normalized inputs, for raw `h`.

    They are exact if every token's standard deviation is `std`. The mean is removed exactly, since

        (h - mean(h)) @ W = h @ (W - mean over d_in of W)
    """
    return (W_enc - W_enc.mean(dim=0)) / (std + EPSILON), W_dec * std


@dataclass(frozen=True, eq=False)
class SAESlice:
    """The part of an SAE that computes N chosen features, and their decoder directions.

    It is exact for architectures in which every feature has its own threshold (ReLU, JumpReLU, gated, BatchTopK at
    inference): `slice.encode(h)` equals `sae.encode(h)[..., feature_ids]` up to the rounding of the matmul. For a topk
    SAE, and for one with normalized inputs, it is an approximation with thresholds that the caller chose.

    Attributes:
        feature_ids (list[int]): The N features' indices in the SAE, in the order of the columns.
        W_enc (Tensor): Encoder columns [d_in, N].
        b_enc (Tensor): Encoder biases [N].
        threshold (Tensor): Thresholds [N], >= 0; zeros for a ReLU SAE.
        W_dec (Tensor): Decoder rows [N, d_in].

    Raises:
        UnlearnError: If shapes, dtypes or values do not fit together.
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
            raise UnlearnError(f"W_enc: expected {len(self.feature_ids)} columns, one per feature id, got {n}.")
        check_tensor("W_enc", self.W_enc, (d_in, n))
        for name, shape in (("b_enc", (n,)), ("threshold", (n,)), ("W_dec", (n, d_in))):
            check_tensor(name, getattr(self, name), shape, self.W_enc.dtype)
        if bool((self.threshold < 0).any()):
            raise UnlearnError("threshold: expected values >= 0, got negative ones. Clamp it at 0.")

    def encode(self, h: torch.Tensor) -> torch.Tensor:
        """Return activations of the N features: [..., d_in] -> [..., N] >= 0, in the slice's dtype.

            pre = h @ W_enc + b_enc ;  a = relu(pre) * (pre > threshold)

        Args:
            h (Tensor): Residual stream `[..., d_in]`.

        Raises:
            UnlearnError: If the last dimension of `h` is not d_in.
        """
        return jumprelu(affine_encode(h, self.W_enc, self.b_enc), self.threshold)


def slice_of(
    weights: Mapping[str, torch.Tensor],
    feature_ids: list[int],
    threshold: torch.Tensor | None = None,
    std: float | None = None,
) -> SAESlice:
    """Return a copy of the weights of some features.

    Args:
        weights (Mapping[str, Tensor]): The whole SAE's W_enc, b_enc, threshold and W_dec.
        feature_ids (list[int]): Ids of the N features.
        threshold (Tensor, *optional*): Thresholds `[N]` in place of the SAE's.
        std (float, *optional*): Standard deviation assumed for every token; see `at_one_deviation`.
    """
    whole = {name: tensor.detach() for name, tensor in weights.items()}
    index = torch.tensor(feature_ids, device=whole["W_enc"].device)
    if threshold is None:
        threshold = whole["threshold"].index_select(0, index)
    W_enc, W_dec = whole["W_enc"].index_select(1, index), whole["W_dec"].index_select(0, index)
    if std is not None:
        W_enc, W_dec = at_one_deviation(W_enc, W_dec, std)
    return SAESlice(feature_ids, W_enc, whole["b_enc"].index_select(0, index), threshold.to(W_enc), W_dec)
