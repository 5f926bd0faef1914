"""Equations of the encoder, shared by the whole autoencoder and by its slices.

    pre = h @ W_enc + b_enc                      [..., d_in] -> [..., n]
    a   = relu(pre) * (pre > threshold)          JumpReLU, Rajamanoharan et al. 2024 (arXiv 2407.14435)

ReLU is the case `threshold = 0`. Thresholds are at least 0, so `relu(pre) * gate` equals `pre * gate`. With the ReLU an
inactive feature is +0.0 (never -0.0) and a NaN stays visible.

Some SAEs remove mean and standard deviation from each token's input, and restore them in the reconstruction:

    x = (h - mean(h)) / (std(h) + 1e-5)          std over d_in - 1, as `torch.std`
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from sae_unlearn.errors import UnlearnError


EPSILON = 1e-5  # OpenAI's, and SAELens'

_AS_IT_IS = nullcontext()
_has_autocast = cache(torch.amp.is_autocast_available)


def without_autocast(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context without autocast on `tensor`'s device: a matmul runs in its operands' dtype."""
    kind = tensor.device.type
    if torch.compiler.is_compiling():  # older dynamo cannot trace the two calls below
        return torch.autocast(kind, enabled=False)
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return _AS_IT_IS


def cast_input(tensor: torch.Tensor, width: int, dtype: torch.dtype, name: str, width_name: str) -> torch.Tensor:
    """Return `tensor [..., width]` in `dtype`. Raise if it is not floating or has another width."""
    if not isinstance(tensor, torch.Tensor):
        raise UnlearnError(f"{name}: expected a torch.Tensor of shape [..., {width}], got {type(tensor).__name__}.")
    if not tensor.is_floating_point():
        raise UnlearnError(f"{name}: expected a floating dtype, got {tensor.dtype}.")
    if tensor.ndim == 0 or tensor.shape[-1] != width:
        raise UnlearnError(
            f"{name}: expected shape [..., {width_name}={width}], got {list(tensor.shape)}. Pass an SAE trained on "
            "this model and layer."
        )
    return tensor.to(dtype)


def affine_encode(h: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor) -> torch.Tensor:
    """Return `h @ W_enc + b_enc`: [..., d_in] -> [..., n], in W_enc's dtype."""
    h = cast_input(h, W_enc.shape[0], W_enc.dtype, "h", "d_in")
    with without_autocast(h):
        return h @ W_enc + b_enc


def layer_normed(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `x [..., d_in]` of the equation above, with `mean [..., 1]` and `std [..., 1]`."""
    mean = h.mean(dim=-1, keepdim=True)
    std = h.std(dim=-1, keepdim=True)
    return (h - mean) / (std + EPSILON), mean, std


def restored(decoded: torch.Tensor, h: torch.Tensor, input_norm: str | None) -> torch.Tensor:
    """Return the reconstruction `[..., d_in]` in the units of `h`, from the decoder's output.

    It is `decoded`; with "center" `decoded + mean`, and with "layer" `decoded * std + mean`.
    """
    if input_norm is None:
        return decoded
    if input_norm == "center":
        return decoded + h.to(decoded.dtype).mean(dim=-1, keepdim=True)
    _, mean, std = layer_normed(h.to(decoded.dtype))
    return decoded * std + mean


def jumprelu(pre: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return `relu(pre) * (pre > threshold)`: [..., n] with threshold [n] >= 0 -> [..., n] >= 0."""
    return torch.relu(pre) * (pre > threshold)


def topk_relu(pre: torch.Tensor, k: int) -> torch.Tensor:
    """Return relu(pre) with only the k largest of each row, others 0: [..., n] -> [..., n] >= 0."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, indices, torch.relu(values))
