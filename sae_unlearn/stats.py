"""Statistics that several modules share: AUC, Wilson intervals and bootstrap intervals."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from sae_unlearn.checks import check_number
from sae_unlearn.errors import UnlearnError
from sae_unlearn.tensor_checks import check_tensors


def pair_wins(first: Tensor, second: Tensor) -> Tensor:
    """Return `[n, m]` float64: 1 where `first [n]` is above `second [m]`, 0.5 where they are equal."""
    return (first[:, None] > second).double() + 0.5 * (first[:, None] == second).double()


def auc(positive: Tensor, negative: Tensor) -> float:
    """Return the probability that a positive `[p]` scores above a negative `[m]`; ties count half.

    This is the Mann-Whitney statistic divided by p * m. It is NaN if either is empty.
    """
    return float(pair_wins(positive, negative).mean()) if len(positive) and len(negative) else float("nan")


def wilson_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `successes` in `n` (E. B. Wilson, JASA 22, 1927).

        (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Unlike the bootstrap interval, it is not a single point if all or none succeed: 0 of 10 gives 0 to 0.28.

    Args:
        successes (float): Number of successes.
        n (float): Number of trials.
        level (float, *optional*, defaults to 0.95): Level of the interval.

    Raises:
        UnlearnError: If `n` is not above 0, or `successes` is not between 0 and n.
    """
    check_number("n", n, above=0)
    check_number("successes", successes, 0, n)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high  # rounding would miss them


def bootstrap_interval(values: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values [n]`, drawn with a fixed seed.

    Args:
        values (Tensor): Values `[n]`.
        level (float, *optional*, defaults to 0.95): Level of the interval.
        draws (int, *optional*, defaults to 2000): Number of resampled means.
        seed (int, *optional*, defaults to 0): Seed of the draws.

    Raises:
        UnlearnError: If `values` is empty, or `level` is not between 0 and 1.
    """
    check_tensors(1, values=values)
    check_number("level", level, above=0, below=1)
    if not len(values):
        raise UnlearnError("values: expected at least one, got none.")
    return percentile_interval(ratio_draws(values, torch.ones_like(values), draws, seed), level)


def percentile_interval(draws: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the middle `level` of bootstrap draws `[draws]` float64."""
    low, high = torch.quantile(draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def times_drawn(size: int, draws: int, generator: torch.Generator) -> Tensor:
    """Return `[draws, size]` float64: how often each of `size` items is drawn, with replacement."""
    index = torch.randint(size, (draws, size), generator=generator)
    return torch.zeros(draws, size, dtype=torch.float64).scatter_add_(1, index, torch.ones(index.shape).double())


def ratio_draws(totals: Tensor, weights: Tensor, draws: int = 2000, seed: int = 0) -> Tensor:
    """Return bootstrap draws of a ratio of sums over n items, `[draws]` float64.

        sum_i totals_i / sum_i weights_i     with the items i drawn with replacement

    The same n and seed draw the same items, so two calls are paired.

    Args:
        totals (Tensor): Numerators `[n]`.
        weights (Tensor): Denominators `[n]`.
        draws (int, *optional*, defaults to 2000): Number of draws.
        seed (int, *optional*, defaults to 0): Seed of the draws.

    Raises:
        UnlearnError: If `totals` is empty.
    """
    if not len(totals):
        raise UnlearnError("totals: expected at least one value, got none.")
    generator = torch.Generator().manual_seed(seed)
    totals, weights = totals.double().cpu(), weights.double().cpu()
    found = []
    for start in range(0, draws, 100):  # as one block, 2,000 draws of 14,000 questions would take a gigabyte
        index = torch.randint(len(totals), (min(100, draws - start), len(totals)), generator=generator)
        found.append(totals[index].sum(dim=1) / weights[index].sum(dim=1))
    return torch.cat(found)
