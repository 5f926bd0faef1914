"""Bootstrap draws, and the intervals between their percentiles."""

import torch
from torch import Tensor

from sae_unlearn.checks import check_tensors


def bootstrap_interval(values: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values [n]`, drawn with a fixed seed.

    Raises:
        ValueError: no values, or a level that is no share.
    """
    check_tensors(1, values=values)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}; expected a share between 0 and 1, such as 0.95.")
    if not len(values):
        raise ValueError("An interval of no values; pass at least one.")
    return percentile_interval(ratio_draws(values, torch.ones_like(values), draws, seed), level)


def percentile_interval(draws: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle `level` of bootstrap draws `[draws]` float64."""
    low, high = torch.quantile(draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def times_drawn(size: int, draws: int, generator: torch.Generator) -> Tensor:
    """`[draws, size]` float64: how often each of `size` things comes when `size` are drawn with replacement."""
    index = torch.randint(size, (draws, size), generator=generator)
    return torch.zeros(draws, size, dtype=torch.float64).scatter_add_(1, index, torch.ones(index.shape).double())


def ratio_draws(totals: Tensor, weights: Tensor, draws: int = 2000, seed: int = 0) -> Tensor:
    """Bootstrap draws of a ratio of sums over n things, `[draws]` float64.

        sum_i totals_i / sum_i weights_i     with the things i drawn with replacement

    The same n and seed draw the same things, so two calls are paired.

    Args:
        totals, weights: `[n]`.

    Raises:
        ValueError: no things.
    """
    if not len(totals):
        raise ValueError("A bootstrap of no values; pass at least one.")
    generator = torch.Generator().manual_seed(seed)
    totals, weights = totals.double().cpu(), weights.double().cpu()
    found = []
    for start in range(0, draws, 100):  # as one block, 2,000 draws of 14,000 questions would take a gigabyte
        index = torch.randint(len(totals), (min(100, draws - start), len(totals)), generator=generator)
        found.append(totals[index].sum(dim=1) / weights[index].sum(dim=1))
    return torch.cat(found)
