"""Checks on the tensors an autoencoder is made of.

Are the raw tensors of a file those of an SAE, and do they fit together? Asked before any arithmetic is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_unlearn.errors import SAEFormatError, UnlearnError


ARCHITECTURES = ("standard", "jumprelu", "gated", "batchtopk", "topk")

# Architectures whose threshold is part of the weights; the others use 0.
THRESHOLD_ARCHITECTURES = ("jumprelu", "gated", "batchtopk")

# None; mean and standard deviation taken out of each token's input; its mean alone, folded into W_enc.
INPUT_NORMS = (None, "layer", "center")

# A column of d_in values rounded to bfloat16 has a mean of some 0.002 of norm / d_in; one with random values, of 1.
CENTERED = 2.0**-6


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


def check_input_norm(input_norm: str | None, W_enc: torch.Tensor) -> None:
    """Raises unless `input_norm` is None or names a normalisation that `W_enc [d_in, d_sae]` can be of.

    "layer" needs an input that has a standard deviation, and "center" columns whose mean is 0 up to rounding.
    """
    if input_norm not in INPUT_NORMS:
        raise UnlearnError(f"input_norm={input_norm!r}; expected 'layer', 'center' or None")
    d_in = W_enc.shape[0]
    if input_norm == "layer" and d_in < 2:
        raise UnlearnError(f"input_norm={input_norm!r} needs d_in >= 2, got {d_in}")
    if input_norm == "center":
        norm = W_enc.float().norm(dim=0)
        left = int((W_enc.float().mean(dim=0).abs() > CENTERED * norm / d_in).sum())
        if left:
            raise UnlearnError(
                f"input_norm='center': expected columns of W_enc with mean 0, got {left} with another. "
                "Subtract each column's mean."
            )


def check_layer(layer: int | None) -> None:
    """Raises unless `layer` is None or an integer >= 0."""
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise UnlearnError(f"layer={layer!r}; expected the 0-based index of a decoder layer, or None")


# Raw per-feature vectors of the published formats, beside the matrices.
SHAPES = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


def check_names(found: Iterable[str], expected: Sequence[str], where: str | Path) -> None:
    """Raises SAEFormatError where names were found that are not expected: what they stand for may change the result."""
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise SAEFormatError(
            f"{where} holds {', '.join(unknown[:8])}; expected only {', '.join(expected)}: "
            "this is another kind of SAE, or a transcoder, which cannot be read exactly"
        )


def require(tensors: Mapping[str, torch.Tensor], names: Sequence[str], path: Path) -> list[torch.Tensor]:
    """`tensors[name]` for each of `names`; raises SAEFormatError where some are missing, or not finite.

    Asked before any folding, which would carry a NaN into tensors that the file has whole.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise SAEFormatError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    for name in names:
        finite = torch.isfinite(tensors[name])
        if not bool(finite.all()):
            raise SAEFormatError(
                f"{name} in {path} holds {int((~finite).sum())} NaN or infinite of {finite.numel()} values; "
                "expected finite weights: download or save it again"
            )
    return [tensors[name] for name in names]


def check_shapes(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[int, int]:
    """`(d_in, d_sae)`, taken from `W_enc`; every name not in SHAPES is a vector [d_sae].

    Raises:
        SAEFormatError: a shape contradicts W_enc's.
    """
    W_enc = tensors["W_enc"].shape
    if len(W_enc) != 2 or 0 in W_enc:
        raise SAEFormatError(f"W_enc in {path} has shape {list(W_enc)}; expected a non-empty matrix [d_in, d_sae]")
    sizes = {"d_in": W_enc[0], "d_sae": W_enc[1]}
    for name, tensor in tensors.items():
        expected = tuple(sizes[axis] for axis in SHAPES.get(name, ("d_sae",)))
        if tensor.shape != expected:
            raise SAEFormatError(
                f"{name} in {path} has shape {list(tensor.shape)}; W_enc is {list(W_enc)}, so expected {list(expected)}"
            )
    return W_enc[0], W_enc[1]


def transpose(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """The transpose of the matrix `name`; raises SAEFormatError where it is none."""
    if tensor.ndim != 2:
        raise SAEFormatError(f"{name} in {path} has shape {list(tensor.shape)}; expected a matrix")
    return tensor.T


def check_stated_sizes(
    sizes: tuple[int, int], stated: tuple[float | None, float | None], path: Path, where: str
) -> None:
    """Raises SAEFormatError where `(d_in, d_sae)` of the tensors is not what `where` states (None: states nothing)."""
    for name, size, claim in zip(("d_in", "d_sae"), sizes, stated, strict=True):
        if claim not in (None, size):
            raise SAEFormatError(f"{path} has {name}={size} but {where} says {claim}")


def check_dtype(dtype: Any) -> None:
    """Raise unless `dtype` is a floating `torch.dtype`."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnlearnError(f"dtype={dtype!r}: expected a floating torch.dtype such as torch.float32.")
