"""`SparseAutoencoder`: a frozen SAE of any supported architecture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sae_unlearn.sae.equations import (
    affine_encode,
    cast_input,
    jumprelu,
    layer_normed,
    restored,
    topk_relu,
    without_autocast,
)
from sae_unlearn.sae.pretrained import PretrainedSAE
from sae_unlearn.sae.slice import SAESlice, check_feature_ids, check_slice_settings, exact_in_slices, slice_of
from sae_unlearn.sae.validate import check_sae


class SparseAutoencoder(PretrainedSAE):
    """A trained sparse autoencoder (SAE) over a residual stream, frozen.

    One form serves every architecture, because input scaling and the subtraction of `b_dec` are folded in at load:

        pre = h @ W_enc + b_enc                        [..., d_in] -> [..., d_sae]
        a   = relu(pre) * (pre > threshold)            standard (threshold 0), jumprelu, gated, batchtopk
        a   = the k largest of relu(pre), others 0     topk
        h'  = a @ W_dec + b_dec                        [..., d_sae] -> [..., d_in]

    With `input_norm="layer"` (OpenAI's topk SAEs, SAELens' `layer_norm`) each token's mean and standard deviation are
    removed from `h` before encoding and restored in the reconstruction:

        pre = x @ W_enc + b_enc,   x = (h - mean(h)) / (std(h) + 1e-5);      h' = (a @ W_dec + b_dec) std(h) + mean(h)

    With `input_norm="center"` (SAELens' SAEs of models loaded with `center_writing_weights`) each token's mean is
    removed: the columns of W_enc have mean 0, so they do not see it. It is restored as well:

        h' = a @ W_dec + b_dec + mean(h)

    Architectures: `standard` is a ReLU SAE; `jumprelu` is Rajamanoharan et al. 2024 (arXiv 2407.14435); `gated`
    (arXiv 2404.16014) with tied weights is a JumpReLU exactly and is kept in that form; `batchtopk`
    (arXiv 2412.06410) is a JumpReLU with its inference threshold; `topk` is Gao et al. 2024 (arXiv 2406.04093).

    Parameters never require gradients; gradients flow through to `h`. Contiguous tensors are not copied.

    Args:
        W_enc (Tensor): Encoder [d_in, d_sae]; its dtype is the SAE's.
        b_enc (Tensor): Encoder bias [d_sae].
        W_dec (Tensor): Decoder [d_sae, d_in].
        b_dec (Tensor): Decoder bias [d_in], added to every reconstruction and not subtracted from the input.
        architecture (str, *optional*, defaults to "jumprelu"): One of `standard`, `jumprelu`, `gated`, `batchtopk`,
            `topk`.
        threshold (Tensor, *optional*): Thresholds [d_sae], for jumprelu, gated and batchtopk. Negative values act as 0,
            because of the ReLU.
        k (int, *optional*): Features kept per token, for topk.
        layer (int, *optional*): 0-based decoder layer whose output the SAE reads, or None if not known. It is
            `hidden_states[layer + 1]`, except for the last layer, whose entry transformers gives after the final norm.
        source (dict[str, Any], *optional*): Origin: id, revision, subfolder, architecture, format, sha256 of the
            weights file, and neuronpedia_id if the files name the SAE's page.
        input_norm (str, *optional*): "layer" if each token's mean and standard deviation are removed from the input,
            "center" if only the mean is, by columns of W_enc with mean 0. None otherwise.

    Raises:
        UnlearnError: If a type, shape, dtype, value, `k`, `threshold` or `layer` does not fit.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    threshold: nn.Parameter

    def __init__(
        self,
        W_enc: torch.Tensor,
        b_enc: torch.Tensor,
        W_dec: torch.Tensor,
        b_dec: torch.Tensor,
        architecture: str = "jumprelu",
        threshold: torch.Tensor | None = None,
        k: int | None = None,
        layer: int | None = None,
        source: dict[str, Any] | None = None,
        input_norm: str | None = None,
    ) -> None:
        super().__init__()
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        d_in, d_sae = check_sae(tensors, threshold, architecture, k, layer, input_norm)
        tensors["threshold"] = W_enc.new_zeros(d_sae) if threshold is None else threshold.detach().clamp(min=0)
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.detach().contiguous(), requires_grad=False))
        self.d_in: int = d_in
        self.d_sae: int = d_sae
        self.architecture: str = architecture
        self.k: int | None = k
        self.layer: int | None = layer
        self.source: dict[str, Any] = dict(source or {})
        self.input_norm: str | None = input_norm
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, in which the SAE computes."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.W_enc.device

    @property
    def exact_in_slices(self) -> bool:
        """True if each feature depends only on the input and its own column, so that `slice` is exact."""
        return exact_in_slices(self.architecture, self.input_norm)

    def pre_activations(self, h: torch.Tensor) -> torch.Tensor:
        """Return `h @ W_enc + b_enc`: residual stream [..., d_in] -> [..., d_sae], in the SAE's dtype.

        With `input_norm="layer"`, `h` is normalized first.

        Args:
            h (Tensor): Residual stream `[..., d_in]`.

        Raises:
            UnlearnError: If `h` is not a floating tensor `[..., d_in]`.
        """
        if self.input_norm == "layer":
            h = layer_normed(cast_input(h, self.d_in, self.dtype, "h", "d_in"))[0]
        return affine_encode(h, self.W_enc, self.b_enc)

    def encode(self, h: torch.Tensor) -> torch.Tensor:
        """Return feature activations: [..., d_in] -> [..., d_sae], all >= 0, in the SAE's dtype.

            a = relu(pre) * (pre > threshold)           or, for topk, the k largest of relu(pre)

        Args:
            h (Tensor): Residual stream `[..., d_in]`.

        Raises:
            UnlearnError: If `h` is not a floating tensor `[..., d_in]`.
        """
        pre = self.pre_activations(h)
        if self.k is not None:  # topk
            return topk_relu(pre, self.k)
        return jumprelu(pre, self.threshold)

    def decode(self, a: torch.Tensor) -> torch.Tensor:
        """Return `a @ W_dec + b_dec`: activations [..., d_sae] -> [..., d_in], in the SAE's dtype.

        With an `input_norm`, this is the reconstruction of the normalized input.

        Args:
            a (Tensor): Activations `[..., d_sae]`.

        Raises:
            UnlearnError: If `a` is not a floating tensor `[..., d_sae]`.
        """
        a = cast_input(a, self.d_sae, self.dtype, "a", "d_sae")
        with without_autocast(a):
            return a @ self.W_dec + self.b_dec

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction `decode(encode(h))`, in the units of `h`: [..., d_in] -> [..., d_in].

        Args:
            h (Tensor): Residual stream `[..., d_in]`.
        """
        return restored(self.decode(self.encode(h)), h, self.input_norm)

    def slice(
        self, feature_ids: Iterable[int], threshold: torch.Tensor | None = None, std: float | None = None
    ) -> SAESlice:
        """Return a copy of the weights of `feature_ids`, in that order.

        Args:
            feature_ids (Iterable[int]): Ids of the N features.
            threshold (Tensor, *optional*): Pre-activations `[N]` above which a feature counts as active. Only for an
                SAE that is not `exact_in_slices`; such a slice is approximate.
            std (float, *optional*): Standard deviation assumed for every token. Only with `input_norm="layer"`.

        Raises:
            UnlearnError: If `feature_ids` is empty, or an id is not an integer, occurs twice or is out of range; if
                the SAE needs `threshold` (and `std`) and does not get it, or gets it and does not need it.
        """
        check_slice_settings(self.architecture, self.k, self.d_sae, self.input_norm, threshold, std)
        ids = check_feature_ids(feature_ids, self.d_sae)
        return slice_of(dict(self.named_parameters()), ids, threshold, std)

    def extra_repr(self) -> str:
        """Return the sizes and settings, for `repr`."""
        k = "" if self.k is None else f", k={self.k}"
        k += "" if self.input_norm is None else f", input_norm={self.input_norm!r}"
        return f"d_in={self.d_in}, d_sae={self.d_sae}, architecture={self.architecture!r}{k}, layer={self.layer}"
