"""Samples of the matrices up to the guarded layer, which tell a fine-tuned model from its base.

A cast to another dtype moves a weight by at most half a step of that dtype, so samples may differ by that. Quantization
moves it further than many fine-tunings. If samples differ, the model's matrix shows whether it was quantized: with few
levels, equal values are frequent among neighbors, and a merged LoRA removes them. The spacing of the levels follows
from that frequency, and samples may differ by it.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.adapters_off import base_parameters
from sae_unlearn.checks import real


SAMPLES = 8
SMALLEST = 16  # rows and columns; a smaller matrix does not show a quantizer's levels
_ALLOWED = 1  # samples of a matrix that may differ
# Share of all samples: through float16, one in sixteen is off by a step of bfloat16; quantizers may round further.
_ALLOWED_OF_ALL = 0.15
_VALUES, _BLOCK = 2**13, 16  # values of a matrix that are read; neighbors that share a quantizer's scale
# A gap is close below this share of the spacing; more than this share of close gaps excludes levels: a merged LoRA has
# 2 to 20 %, levels have none.
_CLOSE, _CLOSE_SHARE = 0.3, 0.01
_COARSE = 0.01  # smallest spacing of a quantizer's levels, in units of the weights' size
_EXACT = 2.0**-20  # relative error of a float32 written with 9 digits
# Relative rounding error of each dtype, the coarsest first.
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: _EXACT}
_TWICE = 2.0**-7  # relative error of a value that was rounded to bfloat16 by two ways
_TINY = 1e-7  # absolute, for float16's smallest numbers


class Comparison(NamedTuple):
    """Result of comparing the matrices of a fingerprint with those of a model.

    Attributes:
        recorded (int): Number of matrices in the fingerprint.
        compared (int): Number of them that could be compared; packed, float8 and offloaded ones cannot.
        different (list[str]): Names of those that differ.
    """

    recorded: int
    compared: int
    different: list[str]


def matrix_samples(layers: nn.ModuleList, layer: int) -> dict[str, list[float]]:
    """Return `SAMPLES` values of every readable matrix of the layers up to `layer`, by name.

    Among matrices whose names differ only in a number, such as experts, the first of each layer stands for all.

    Args:
        layers (nn.ModuleList): All decoder layers.
        layer (int): The guarded layer; later weights are not read.
    """
    found = {name: sampled(matrix) for name, matrix in _matrices(layers, layer).items() if readable(matrix)}
    return {name: [float(f"{value:.9g}") for value in values] for name, values in found.items()}


def compare_matrices(recorded: Any, layers: nn.ModuleList, layer: int) -> Comparison:
    """Compare recorded samples with a model's matrices.

    Args:
        recorded (Any): Result of `matrix_samples`, from an untrusted file.
        layers (nn.ModuleList): All decoder layers of the model.
        layer (int): The guarded layer.
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
    """Return True if a matrix holds plain values: in memory, 16 bits or more, not packed, not sharded."""
    plain = type(matrix.detach()) is Tensor and not matrix.is_meta and 0 not in matrix.shape
    return plain and matrix.dtype in (torch.float64, *_ROUNDING)


@torch.no_grad()
def sampled(matrix: Tensor) -> list[float]:
    """Return values along a matrix's diagonal, from corner to corner."""
    where = tuple(torch.linspace(0, size - 1, SAMPLES).long().to(matrix.device) for size in matrix.shape)
    values: list[float] = matrix[where].double().cpu().tolist()
    return values


@torch.no_grad()
def level_spacing(matrix: Tensor) -> float | None:
    """Return the spacing of the levels of a quantized matrix; None if it is not quantized.

    Of values of size s at levels d apart, a share of about `d / (2 sqrt(pi) s)` of all pairs is equal. Adding another
    matrix destroys the levels: in a coarse dtype some values are still equal, but others are close to them.
    """
    while matrix.ndim > 2:  # several experts
        matrix = matrix[0]
    share, values = max((_neighbors(lines) for lines in (matrix, matrix.T)), key=lambda found: found[0])
    spacing = share * 2 * math.sqrt(math.pi)
    sizes = values.square().mean(dim=1, keepdim=True).sqrt()  # per block: rows may differ much in size
    gaps = values.sort(dim=1).values.diff(dim=1)
    close = (gaps < _CLOSE * spacing * sizes)[gaps > 0]
    if spacing <= _COARSE or float(close.double().mean()) > _CLOSE_SHARE:
        return None
    return spacing * float(values.square().mean().sqrt())


def _neighbors(lines: Tensor) -> tuple[float, Tensor]:
    """Return the share of equal pairs among nonzero neighbors, and the values `[blocks, block]`."""
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
    """Return the relative error that the coarser of two dtypes explains, or `_EXACT` for equal dtypes."""
    dtypes = [_coarsest(values) for values in (recorded, found)]
    return _EXACT if dtypes[0] == dtypes[1] else max(_ROUNDING[dtype] for dtype in dtypes)


def _coarsest(values: Tensor) -> torch.dtype:
    """Return the coarsest dtype that represents all values, which have 9 digits."""
    exact = values.float()
    return next((dtype for dtype in _ROUNDING if bool((exact.to(dtype).float() == exact).all())), torch.float32)
