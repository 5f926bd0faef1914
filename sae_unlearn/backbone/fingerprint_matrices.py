"""Samples of the matrices of the guarded depth, by which a fine-tuned model is told from its base.

Casting a model to another dtype moves a weight by at most half of a step of that dtype, so the samples are compared as
closely. Quantising moves it by more than many a fine-tuning does. Where samples differ, the model's own matrix says
whether it was quantised: few levels make equal values frequent among neighbors, which a merged LoRA does away with.
The spacing of the levels follows from that frequency, and samples may differ by it.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.adapters_off import base_parameters
from sae_unlearn.checks import real


SAMPLES = 8
SMALLEST = 16  # rows and columns; in less, a quantiser's levels cannot be seen
_ALLOWED = 1  # of the samples of a matrix
# Of all samples: by way of float16, one in sixteen is off by a step of bfloat16; quantisers may round further.
_ALLOWED_OF_ALL = 0.15
_VALUES, _BLOCK = 2**13, 16  # of a matrix in which levels are looked for; neighbors that share a quantiser's scale
_CLOSE, _CLOSE_SHARE = (
    0.3,
    0.01,
)  # of the spacing, and of all gaps: levels leave none, a merged LoRA 2 to 20 %
_COARSE = 0.01  # levels further apart than this, in units of the weights' size, are a quantiser's
_EXACT = 2.0**-20  # what is left of a float32 written with 9 digits
# Relative rounding error of each dtype, the coarsest first.
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: _EXACT}
_TWICE = 2.0**-7  # relative error of a value that was rounded to bfloat16 by two ways
_TINY = 1e-7  # absolute, for float16's smallest numbers


class Comparison(NamedTuple):
    """The matrices of a fingerprint, compared with those of a model.

    Attributes:
        recorded: how many the fingerprint names.
        compared: how many of them could be compared; those of another storage (packed, float8, offloaded) could not.
        different: the names of those that differ.
    """

    recorded: int
    compared: int
    different: list[str]


def matrix_samples(layers: nn.ModuleList, layer: int) -> dict[str, list[float]]:
    """A few values of every readable matrix of the layers up to `layer`, by name.

    Of matrices that differ in a number alone, such as those of experts, the first of each layer stands for all.

    Args:
        layers (`nn.ModuleList`): All decoder layers.
        layer (`int`): The guarded one; weights after it play no part.
    """
    found = {name: sampled(matrix) for name, matrix in _matrices(layers, layer).items() if readable(matrix)}
    return {name: [float(f"{value:.9g}") for value in values] for name, values in found.items()}


def compare_matrices(recorded: Any, layers: nn.ModuleList, layer: int) -> Comparison:
    """Compare recorded samples with a model's matrices.

    Args:
        recorded (`Any`): What `matrix_samples` gave, from a file that anybody may have written.
        layers (`nn.ModuleList`): All decoder layers of the model.
        layer (`int`): The guarded one.
    """
    if not isinstance(recorded, dict):
        return Comparison(0, 0, [])
    matrices = {name: matrix for name, matrix in _matrices(layers, layer).items() if readable(matrix)}
    compared, different, doubtful, missed = 0, [], [], 0
    for name, matrix in matrices.items():
        if name not in recorded:
            continue
        compared += 1
        stored = recorded[name]
        expected = [real(value) for value in stored] if isinstance(stored, list) else []
        if len(expected) != SAMPLES or None in expected:
            different.append(name)
            continue
        there, found = torch.tensor(expected, dtype=torch.float64), torch.tensor(sampled(matrix), dtype=torch.float64)
        off = (there - found).abs() - _TINY
        size = torch.maximum(there.abs(), found.abs())
        misses = int((off > _rounding(there, found) * size).sum())
        if misses <= _ALLOWED:
            missed += misses
        elif _coarsest(found) == torch.bfloat16 and int((off > _TWICE * size).sum()) <= _ALLOWED:
            doubtful.append(name)
            missed += misses
        elif (spacing := level_spacing(matrix)) is not None:
            doubtful.append(name)
            missed += int((off > spacing).sum())
        else:
            different.append(name)
    if missed > _ALLOWED_OF_ALL * SAMPLES * compared:
        different += doubtful
    return Comparison(len(recorded), compared, different)


def readable(matrix: Tensor) -> bool:
    """Whether a matrix's values stand in it as they are: in memory, of 16 bits or more, not packed and not sharded."""
    plain = type(matrix.detach()) is Tensor and not matrix.is_meta and 0 not in matrix.shape
    return plain and matrix.dtype in (torch.float64, *_ROUNDING)


@torch.no_grad()
def sampled(matrix: Tensor) -> list[float]:
    """Values along a matrix's diagonal, from corner to corner."""
    where = tuple(torch.linspace(0, size - 1, SAMPLES).long().to(matrix.device) for size in matrix.shape)
    values: list[float] = matrix[where].double().cpu().tolist()
    return values


@torch.no_grad()
def level_spacing(matrix: Tensor) -> float | None:
    """How far apart the levels of a quantised matrix are; None if it is not quantised.

    Of values of size s at levels d apart, a share of about `d / (2 sqrt(pi) s)` of all pairs is equal. Levels that
    something was added to are none any more: in a coarse dtype values are equal still, but others lie close by.
    """
    while matrix.ndim > 2:  # of several experts
        matrix = matrix[0]
    share, values = max((_neighbors(lines) for lines in (matrix, matrix.T)), key=lambda found: found[0])
    spacing = share * 2 * math.sqrt(math.pi)
    sizes = values.square().mean(dim=1, keepdim=True).sqrt()  # each block's own: rows may be of very different sizes
    gaps = values.sort(dim=1).values.diff(dim=1)
    close = (gaps < _CLOSE * spacing * sizes)[gaps > 0]
    if spacing <= _COARSE or float(close.double().mean()) > _CLOSE_SHARE:
        return None
    return spacing * float(values.square().mean().sqrt())


def _neighbors(lines: Tensor) -> tuple[float, Tensor]:
    """The share of equal ones among pairs of neighbors, and their values `[blocks, block]`; zeros are no level."""
    number = min(max(_VALUES // lines.shape[1], 4), len(lines))
    rows = torch.linspace(0, len(lines) - 1, number).long().to(lines.device)
    kept = lines[rows, : lines.shape[1] // _BLOCK * _BLOCK].float().reshape(-1, _BLOCK)
    equal = (kept[:, 1:, None] == kept[:, None, :-1]).tril() & (kept[:, 1:, None] != 0)
    filled = (kept != 0).sum(dim=1).double()
    pairs = float((filled * (filled - 1) / 2).sum())
    return (float(equal.sum()) / pairs if pairs else 0.0), kept


def _matrices(layers: nn.ModuleList, layer: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for depth, decoder_layer in enumerate(layers[: layer + 1]):
        kinds = set()
        for name, parameter in base_parameters(decoder_layer, f"{depth}."):
            kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
            if parameter.ndim > 1 and kind not in kinds and min(parameter.shape[-2:]) >= SMALLEST:
                kinds.add(kind)
                found[name] = parameter
    return found


def _rounding(recorded: Tensor, found: Tensor) -> float:
    """The relative error that the coarser of two dtypes explains; none where both are the same."""
    dtypes = [_coarsest(values) for values in (recorded, found)]
    return _EXACT if dtypes[0] == dtypes[1] else max(_ROUNDING[dtype] for dtype in dtypes)


def _coarsest(values: Tensor) -> torch.dtype:
    """The coarsest dtype that holds all values, of which 9 digits are known."""
    exact = values.float()
    return next((dtype for dtype in _ROUNDING if bool((exact.to(dtype).float() == exact).all())), torch.float32)
