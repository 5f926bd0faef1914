"""Small statistics that several parts need: the order of pairs, and the interval of a share.

Bootstrap draws, and the intervals between their percentiles.
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from sae_unlearn.checks import check_tensors


def pair_wins(first: Tensor, second: Tensor) -> Tensor:
    """`[n, m]` float64: 1 where `first [n]` is above `second [m]`, 0.5 where they are equal."""
    return (first[:, None] > second).double() + 0.5 * (first[:, None] == second).double()


def auc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting half: `[p]`, `[m]` -> float.

    It is the Mann-Whitney statistic divided by p * m; NaN if either is empty.
    """
    return float(pair_wins(positive, negative).mean()) if len(positive) and len(negative) else float("nan")


def wilson_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share of `successes` in `n` (E. B. Wilson, JASA 22, 1927).

        (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Unlike the bootstrap it is no point where all or none succeed: 0 of 10 gives 0 to 0.28.

    Raises:
        ValueError: no trials, or successes that are not between 0 and n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"An interval of {successes} successes in {n}; pass 0 <= successes <= n, and n > 0.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high  # where rounding would miss them


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
