"""A measured number that is never without its interval and its n.

AUC as the share of pairs in the right order, with an interval over the things that are paired.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.checks import check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.stats import bootstrap_interval, percentile_interval, times_drawn, wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
        n: independent things that the interval is over: entities, facts or texts, not tokens or templates.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def mean(cls, values: Tensor, seed: int = 0, subjects: Sequence[Hashable] | None = None) -> "Estimate":
        """The mean of `values [n]`, with the bootstrap interval.

        Args:
            subjects: what each value is about; values about one subject are averaged and count as one.

        Raises:
            UnlearnError: no values, or not as many subjects.
        """
        values = torch.as_tensor(values, dtype=torch.float64)
        if subjects is not None:
            of_subject = list(_by_subject(values.tolist(), subjects).values())
            values = torch.tensor([sum(found) / len(found) for found in of_subject], dtype=torch.float64)
        low, high = bootstrap_interval(values, seed=seed)
        return cls(float(values.mean()), low, high, len(values))

    @classmethod
    def share(cls, hits: Sequence[bool], subjects: Sequence[Hashable] | None = None) -> "Estimate":
        """The share of `hits`, with the Wilson interval.

        Args:
            subjects: what each trial is about. Trials about one subject are not independent, so every subject counts as
                one trial that succeeds by its share; that is the cautious end, as if they all agreed.

        Raises:
            UnlearnError: no trials, or not as many subjects.
        """
        check_is(hits, Sequence, "hits")
        subjects = range(len(hits)) if subjects is None else subjects
        shares = [sum(found) / len(found) for found in _by_subject(map(bool, hits), subjects).values()]
        n, total = len(shares), min(sum(shares), float(len(shares)))  # rounding must not take it past n
        low, high = wilson_interval(total, n)
        return cls(total / n, low, high, n)

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n={self.n})"


def _by_subject(values: Iterable[Any], subjects: Iterable[Hashable]) -> dict[Hashable, list[Any]]:
    found: dict[Hashable, list[Any]] = {}
    values, subjects = list(values), list(subjects)
    if len(values) != len(subjects):
        raise UnlearnError(f"{len(subjects)} subjects of {len(values)} values; name one for each.")
    for value, subject in zip(values, subjects, strict=True):
        found.setdefault(subject, []).append(value)
    return found


def pair_auc(
    wins: Tensor, counts: Tensor | None = None, same: bool = False, draws: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of pairs that were compared, with a bootstrap over the things on both sides.

    In each bootstrap draw the things are drawn with replacement, u_i and v_j being how often each came:

        AUC* = sum_ij u_i v_j wins_ij / sum_ij u_i v_j counts_ij      (u = v where both sides are the same things)

    Args:
        wins: `[n, m]`, the sum of the outcomes (0 to 1) of each pair's comparisons.
        counts: `[n, m]`, how often each pair was compared; None for once each.
        same: the two sides are the same things, compared with each other.

    Returns:
        The AUC; its `n` counts the things of the first side that were compared.

    Raises:
        ValueError: no pair was compared.
    """
    wins = wins.double()
    counts = torch.ones_like(wins) if counts is None else counts.double()
    if not bool((counts > 0).any()):
        raise ValueError("No pair was compared; pass at least one thing on each side.")
    generator = torch.Generator().manual_seed(seed)
    u = times_drawn(len(wins), draws, generator)
    v = u if same else times_drawn(wins.shape[1], draws, generator)
    compared = ((u @ counts) * v).sum(dim=1)
    found = ((u @ wins) * v).sum(dim=1)[compared > 0] / compared[compared > 0]
    return Estimate(float(wins.sum() / counts.sum()), *percentile_interval(found), int((counts.sum(dim=1) > 0).sum()))
