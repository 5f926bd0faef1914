"""Checks of an autoencoder's tensors and settings, made before any arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_unlearn.checks import check_choice, check_integer
from sae_unlearn.errors import SAEFormatError, UnlearnError


ARCHITECTURES = ("standard", "jumprelu", "gated", "batchtopk", "topk")

# Architectures whose threshold is part of the weights; the others use 0.
THRESHOLD_ARCHITECTURES = ("jumprelu", "gated", "batchtopk")

# None; each token's mean and standard deviation removed from the input; only its mean removed, folded into W_enc.
INPUT_NORMS = (None, "layer", "center")

# A centered column of d_in values rounded to bfloat16 has a mean of about 0.002 norm / d_in; a random one, of 1.
CENTERED = 2.0**-6


def check_tensor(name: str, tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> None:
    """Raise unless `tensor` is a finite floating tensor of `shape` (and of `dtype`, if passed)."""
    if not isinstance(tensor, torch.Tensor):
        raise UnlearnError(f"{name}: expected a torch.Tensor of shape {list(shape)}, got {type(tensor).__name__}.")
    if not tensor.is_floating_point():
        raise UnlearnError(f"{name}: expected a floating dtype such as torch.float32, got {tensor.dtype}.")
    if dtype is not None and tensor.dtype != dtype:
        raise UnlearnError(f"{name}: expected {dtype}, as W_enc, got {tensor.dtype}. Cast both to one dtype.")
    if list(tensor.shape) != list(shape):
        raise UnlearnError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}.")
    if unsound := _not_finite(tensor):
        raise UnlearnError(
            f"{name}: expected finite weights, got {unsound} in {tensor.dtype}. Check the file, or load in a wider "
            "dtype such as torch.float32."
        )


def _not_finite(tensor: torch.Tensor) -> str:
    """Return how many values are NaN or infinite, "" if none is."""
    finite = torch.isfinite(tensor)
    return "" if bool(finite.all()) else f"{int((~finite).sum())} NaN or infinite of {tensor.numel()} values"


# Shapes of tensors; every other name, of ours and of the published formats, is a vector [d_sae].
SHAPES = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


def shape_of(name: str, d_in: int, d_sae: int) -> tuple[int, ...]:
    """Return the shape of an SAE's tensor."""
    sizes = {"d_in": d_in, "d_sae": d_sae}
    return tuple(sizes[axis] for axis in SHAPES.get(name, ("d_sae",)))


def check_dimensions(
    W_enc: torch.Tensor, name: str = "W_enc", error: type[UnlearnError] = UnlearnError
) -> tuple[int, int]:
    """Return `(d_in, d_sae)` of `W_enc [d_in, d_sae]`. Raise unless it is a non-empty matrix."""
    if not isinstance(W_enc, torch.Tensor):
        raise error(f"{name}: expected a torch.Tensor of shape [d_in, d_sae], got {type(W_enc).__name__}.")
    if W_enc.ndim != 2 or W_enc.numel() == 0:
        raise error(f"{name}: expected a non-empty matrix [d_in, d_sae], got shape {list(W_enc.shape)}.")
    return W_enc.shape[0], W_enc.shape[1]


def check_parameters(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise unless W_enc, b_enc, W_dec, b_dec and threshold agree in shape and dtype."""
    sizes = check_dimensions(tensors["W_enc"])
    dtype = tensors["W_enc"].dtype
    for name, tensor in tensors.items():
        check_tensor(name, tensor, shape_of(name, *sizes), dtype)


def check_sae(
    tensors: Mapping[str, torch.Tensor],
    threshold: torch.Tensor | None,
    architecture: str,
    k: int | None,
    layer: int | None,
    input_norm: str | None,
) -> tuple[int, int]:
    """Return `(d_in, d_sae)` of an autoencoder's parameters. Raise unless they and its settings agree.

    Args:
        tensors (Mapping[str, Tensor]): W_enc, b_enc, W_dec and b_dec.
        threshold (Tensor or None): As passed; None is 0 for every feature.
        architecture, k, layer, input_norm: As in `SparseAutoencoder`.
    """
    d_in, d_sae = check_dimensions(tensors["W_enc"])
    check_architecture(architecture, threshold, k, d_sae)
    check_layer(layer)
    check_input_norm(input_norm, tensors["W_enc"])
    check_parameters(tensors if threshold is None else {**tensors, "threshold": threshold})
    return d_in, d_sae


def check_architecture(architecture: str, threshold: torch.Tensor | None, k: int | None, d_sae: int) -> None:
    """Raise unless `threshold` and `k` are passed exactly if `architecture` has them."""
    check_choice("architecture", architecture, ARCHITECTURES)
    if architecture in THRESHOLD_ARCHITECTURES and threshold is None:
        raise UnlearnError(
            f"threshold: expected a tensor [d_sae={d_sae}] with architecture={architecture!r}, got None. Pass it, or "
            "architecture='standard' for a ReLU SAE."
        )
    if architecture not in THRESHOLD_ARCHITECTURES and threshold is not None:
        raise UnlearnError(f"threshold: expected None with architecture={architecture!r}.")
    if architecture == "topk":
        check_integer("k", k, 1, d_sae)
    elif k is not None:
        raise UnlearnError(f"k={k!r}: expected None with architecture={architecture!r}.")


def check_input_norm(input_norm: str | None, W_enc: torch.Tensor) -> None:
    """Raise unless `input_norm` is None or a normalization that fits `W_enc [d_in, d_sae]`.

    "layer" needs at least two inputs, and "center" columns whose mean is 0 up to rounding.
    """
    check_choice("input_norm", input_norm, INPUT_NORMS)
    d_in = W_enc.shape[0]
    if input_norm == "layer" and d_in < 2:
        raise UnlearnError(f"input_norm={input_norm!r}: expected d_in of at least 2, got {d_in}.")
    if input_norm == "center":
        norm = W_enc.float().norm(dim=0)
        left = int((W_enc.float().mean(dim=0).abs() > CENTERED * norm / d_in).sum())
        if left:
            raise UnlearnError(
                f"input_norm='center': expected columns of W_enc with mean 0, got {left} with another. "
                "Subtract each column's mean."
            )


def check_layer(layer: int | None) -> None:
    """Raise unless `layer` is None or an integer >= 0."""
    if layer is not None:
        check_integer("layer", layer, 0)


def check_names(found: Iterable[str], expected: Sequence[str], where: str | Path) -> None:
    """Raise SAEFormatError for unexpected names: an unknown tensor may change the result."""
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise SAEFormatError(
            f"{where} holds {', '.join(unknown[:8])}: expected only {', '.join(expected)}. It is another kind of SAE, "
            "or a transcoder."
        )


def require(tensors: Mapping[str, torch.Tensor], names: Sequence[str], path: Path) -> list[torch.Tensor]:
    """Return `tensors[name]` for each of `names`. Raise SAEFormatError if one is missing or not finite.

    Call it before folding, which would spread a NaN to other tensors.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise SAEFormatError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(tensors)) or 'nothing'}.")
    for name in names:
        if unsound := _not_finite(tensors[name]):
            raise SAEFormatError(
                f"{name} in {path}: expected finite weights, got {unsound}. Download or save it again."
            )
    return [tensors[name] for name in names]


def check_shapes(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[int, int]:
    """Return `(d_in, d_sae)` of the `W_enc` that a file holds. Raise unless its other tensors agree.

    Raises:
        SAEFormatError: If a shape contradicts W_enc's.
    """
    W_enc = tensors["W_enc"]
    sizes = check_dimensions(W_enc, f"W_enc in {path}", SAEFormatError)
    for name, tensor in tensors.items():
        expected = shape_of(name, *sizes)
        if tensor.shape != expected:
            raise SAEFormatError(
                f"{name} in {path}: expected shape {list(expected)} with W_enc {list(W_enc.shape)}, "
                f"got {list(tensor.shape)}."
            )
    return sizes


def transpose(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """Return the transpose of the matrix `name`. Raise SAEFormatError unless it is a matrix."""
    if tensor.ndim != 2:
        raise SAEFormatError(f"{name} in {path}: expected a matrix, got shape {list(tensor.shape)}.")
    return tensor.T


def check_stated_sizes(
    sizes: tuple[int, int], stated: tuple[float | None, float | None], path: Path, where: str
) -> None:
    """Raise SAEFormatError if `(d_in, d_sae)` of the tensors differs from the stated sizes, if any."""
    for name, size, claim in zip(("d_in", "d_sae"), sizes, stated, strict=True):
        if claim not in (None, size):
            raise SAEFormatError(f"{path} has {name}={size}: expected {claim}, as {where} says.")


def check_dtype(dtype: Any) -> None:
    """Raise unless `dtype` is a floating `torch.dtype`."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnlearnError(f"dtype={dtype!r}: expected a floating torch.dtype such as torch.float32.")
