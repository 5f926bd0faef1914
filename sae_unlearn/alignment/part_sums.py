"""The parts of the loss, summed until they are logged."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.alignment.config import PARTS


def counts_of(inputs: Mapping[str, Any]) -> Tensor:
    """What each of `PARTS` is a mean over in a batch of `AlignmentItems`, rows or tokens: `[4]`."""
    rows = len(inputs["input_ids"])
    tokens = inputs["retain_at"].sum()
    return torch.stack([tokens.new_tensor(rows)] * 3 + [tokens]).float()


def count_of(part: str, counts: Tensor) -> Tensor:
    """The count of one part, of `counts_of`."""
    return counts[PARTS.index(part)]


class PartSums:
    """Sums and counts of each part, of training and of evaluation."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}

    def add(self, mode: str, sums: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add the sums of a batch, and its counts."""
        for part, value in sums.items():
            held = self._sums[mode].setdefault(part, torch.zeros(2, device=value.device, dtype=torch.float32))
            held += torch.stack([value.detach().float(), count_of(part, counts)])

    def take_means(self, mode: str, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each part since the last call, of which there was something to measure, and a new start.

        Args:
            reduce: sums over processes.
        """
        sums = self._sums[mode]
        means = {}
        for part in PARTS:
            if part in sums:
                total, count = reduce(sums[part]).tolist()
                if count:
                    means[part] = total / count
        sums.clear()
        return means
