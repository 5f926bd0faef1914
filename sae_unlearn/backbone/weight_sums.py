"""Checksums of a base model's weights, to detect that training has changed one of them.

Of a weight's bytes, read as 64-bit integers `x` in rows of 1024, with every operation modulo 2^64:

    s = sum_i (2 i + 1) * (sum_j x_ij),      i = 0, 1, ... the row

All bytes are read, since a step of an optimizer may change few values: the rows of an embedding whose tokens were in
the batch, or the values of a bfloat16 matrix that a small step does not round away. A sum of integers is exact, so it
is equal on every device and in every order. One changed row of a sum is found always, several except by chance. It
reads at the speed of memory: 5 GB/s on one core.

torch's `_version` counters cost less, but a write to `weight.data` (DeepSpeed's, for one) does not change them, and a
copied or unpickled model starts at 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.adapters_off import base_parameters


_ROW = 1024


class WeightSum(NamedTuple):
    """Checksum of one weight. Those of another shape or dtype cannot be compared."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    total: int


@torch.no_grad()
def weight_sums(model: nn.Module) -> dict[str, WeightSum]:
    """Return the checksum of each base parameter by name, without adapters.

    Parameters that are not in memory (`meta`), sharded or of a quantizer's own tensor class are left out.

    Args:
        model (Module): The bare transformers model.
    """
    found: dict[str, Tensor] = {}
    totals: dict[int, Tensor] = {}  # by id: tied weights are read once
    for name, parameter in base_parameters(model):
        plain = parameter.detach()
        if type(plain) is Tensor and not plain.is_meta and plain.layout == torch.strided:
            found[name] = parameter
            if id(parameter) not in totals:
                totals[id(parameter)] = _total(plain)
    numbers = dict(zip(totals, _on_host(list(totals.values())), strict=True))
    return {name: WeightSum(tuple(p.shape), p.dtype, numbers[id(p)]) for name, p in found.items()}


def changed_weights(before: dict[str, WeightSum], now: dict[str, WeightSum]) -> list[str]:
    """Return the names of the weights whose values differ, among those of equal shape and dtype."""
    return [name for name, one in now.items() if name in before and before[name][:2] == one[:2] and before[name] != one]


def _total(weight: Tensor) -> Tensor:
    data = weight.contiguous().view(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = data.numel() // (8 * _ROW) * (8 * _ROW)
    rows = data[:whole].view(torch.int64).view(-1, _ROW).sum(dim=1)
    return _weighed(torch.cat([rows, data[whole:].long()]))


def _weighed(values: Tensor) -> Tensor:
    return (values * torch.arange(1, 2 * len(values), 2, device=values.device)).sum()


def _on_host(totals: list[Tensor]) -> list[int]:
    """Return numbers that lie on several devices, with one transfer from each."""
    found = dict.fromkeys(range(len(totals)), 0)
    for device in {total.device for total in totals}:
        places = [place for place, total in enumerate(totals) if total.device == device]
        found |= dict(zip(places, torch.stack([totals[place] for place in places]).tolist(), strict=True))
    return list(found.values())
