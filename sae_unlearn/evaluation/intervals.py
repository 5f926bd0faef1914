"""Intervals of means."""

import torch
from torch import Tensor


def bootstrap_interval(values: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values [n]`, drawn with a fixed seed.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("An interval of no values; pass at least one.")
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values.double().cpu()[index].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
