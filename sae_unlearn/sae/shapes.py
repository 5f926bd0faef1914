"""Are the raw tensors of a file those of an SAE, and do they fit together? Asked before any arithmetic is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from sae_unlearn.sae.errors import SAEFormatError


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
