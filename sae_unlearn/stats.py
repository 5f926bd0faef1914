"""Small statistics that several parts need: the order of pairs, and the interval of a share."""

import math
from statistics import NormalDist

from torch import Tensor


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
