"""Checks on the tensors an autoencoder is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sae_unlearn.errors import UnlearnError


ARCHITECTURES = ("standard", "jumprelu", "gated", "batchtopk", "topk")

# Architectures whose threshold is part of the weights; the others use 0.
THRESHOLD_ARCHITECTURES = ("jumprelu", "gated", "batchtopk")


def check_tensor(name: str, tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> None:
    """Raises unless `tensor` is a finite floating tensor of `shape` (and of `dtype`, where one is given)."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {list(shape)}, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise UnlearnError(f"{name} has dtype {tensor.dtype}; expected a floating dtype such as torch.float32")
    if dtype is not None and tensor.dtype != dtype:
        raise UnlearnError(f"{name} has dtype {tensor.dtype} but W_enc has {dtype}; cast both to one dtype")
    if list(tensor.shape) != list(shape):
        raise UnlearnError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}")
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise UnlearnError(
            f"{name} holds {bad} NaN or infinite of {tensor.numel()} values in {tensor.dtype}; "
            "expected finite weights: check the file, or load in a wider dtype such as torch.float32"
        )


def check_dimensions(W_enc: torch.Tensor) -> tuple[int, int]:
    """`(d_in, d_sae)` of `W_enc [d_in, d_sae]`; raises where it is no matrix or is empty."""
    if not isinstance(W_enc, torch.Tensor):
        raise TypeError(f"W_enc must be a torch.Tensor of shape [d_in, d_sae], got {type(W_enc).__name__}")
    if W_enc.ndim != 2 or W_enc.numel() == 0:
        raise UnlearnError(f"W_enc has shape {list(W_enc.shape)}; expected a non-empty matrix [d_in, d_sae]")
    return W_enc.shape[0], W_enc.shape[1]


def check_parameters(tensors: Mapping[str, torch.Tensor]) -> None:
    """Checks W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], threshold [d_sae] together."""
    d_in, d_sae = check_dimensions(tensors["W_enc"])
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    dtype = tensors["W_enc"].dtype
    for name, tensor in tensors.items():
        check_tensor(name, tensor, shapes.get(name, (d_sae,)), dtype)


def check_architecture(architecture: str, threshold: torch.Tensor | None, k: int | None, d_sae: int) -> None:
    """Raises unless threshold and k are given exactly where `architecture` has them."""
    if architecture not in ARCHITECTURES:
        raise UnlearnError(f"architecture={architecture!r} is not known; expected one of {', '.join(ARCHITECTURES)}")
    if architecture in THRESHOLD_ARCHITECTURES and threshold is None:
        raise UnlearnError(
            f"architecture={architecture!r} needs threshold [d_sae={d_sae}]; pass it, "
            "or architecture='standard' for a ReLU SAE"
        )
    if architecture not in THRESHOLD_ARCHITECTURES and threshold is not None:
        raise UnlearnError(f"architecture={architecture!r} has no threshold; leave it out, or use 'jumprelu'")
    if architecture == "topk":
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
            raise UnlearnError(f"architecture='topk' needs an integer k with 1 <= k <= d_sae={d_sae}, got {k!r}")
    elif k is not None:
        raise UnlearnError(f"k={k!r} belongs to architecture='topk' only; leave it out for {architecture!r}")


def check_input_norm(input_norm: str | None, d_in: int) -> None:
    """Raises unless `input_norm` is None, or "layer" with an input that has a standard deviation."""
    if input_norm not in (None, "layer"):
        raise UnlearnError(f"input_norm={input_norm!r}; expected 'layer' or None")
    if input_norm is not None and d_in < 2:
        raise UnlearnError(f"input_norm={input_norm!r} needs d_in >= 2, got {d_in}")


def check_layer(layer: int | None) -> None:
    """Raises unless `layer` is None or an integer >= 0."""
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise UnlearnError(f"layer={layer!r}; expected the 0-based index of a decoder layer, or None")
