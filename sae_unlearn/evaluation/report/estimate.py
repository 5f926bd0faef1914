"""Estimates: measured numbers with interval and n, as means, shares and AUC."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.checks import check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.files import read_as
from sae_unlearn.stats import bootstrap_interval, percentile_interval, times_drawn, wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value (float): The estimate.
        low (float): Lower end of the interval.
        high (float): Upper end.
        n (int): Number of independent things in the interval: entities, facts or texts, not tokens or templates.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def mean(cls, values: Tensor, seed: int = 0, subjects: Sequence[Hashable] | None = None) -> "Estimate":
        """Return the mean of `values [n]`, with the bootstrap interval.

        Args:
            values (Tensor): `[n]`.
            seed (int, *optional*, defaults to 0): Seed of the bootstrap.
            subjects (sequence, *optional*): Subject of each value. Values of one subject are averaged and count as one.

        Raises:
            UnlearnError: If `values` is empty or `subjects` has another length.
        """
        values = torch.as_tensor(values, dtype=torch.float64)
        if subjects is not None:
            of_subject = list(_by_subject(values.tolist(), subjects).values())
            values = torch.tensor([sum(found) / len(found) for found in of_subject], dtype=torch.float64)
        low, high = bootstrap_interval(values, seed=seed)
        return cls(float(values.mean()), low, high, len(values))

    @classmethod
    def share(cls, hits: Sequence[bool], subjects: Sequence[Hashable] | None = None) -> "Estimate":
        """Return the share of `hits`, with the Wilson interval.

        Args:
            hits (sequence of bool): The trials.
            subjects (sequence, *optional*): Subject of each trial. Trials of one subject are not independent, so every
                subject counts as one trial that succeeds by its share. This is cautious, as if its trials all agreed.

        Raises:
            UnlearnError: If `hits` is empty or `subjects` has another length.
        """
        check_is(hits, Sequence, "hits")
        subjects = range(len(hits)) if subjects is None else subjects
        shares = [sum(found) / len(found) for found in _by_subject(map(bool, hits), subjects).values()]
        n, total = len(shares), min(sum(shares), float(len(shares)))  # rounding must not exceed n
        low, high = wilson_interval(total, n)
        return cls(total / n, low, high, n)

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as a mapping that JSON can hold. Values that are not finite become None."""
        return {name: finite(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Estimate":
        """Return the estimate from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing, unknown or not a number.
        """
        with read_as("estimate of a report"):
            return cls(**{name: number(value) for name, value in stored.items()})

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n={self.n})"


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it, None if it is not finite."""
    return value if math.isfinite(value) else None


def number(value: Any) -> Any:
    """Return a number of a report's JSON, NaN for None.

    Raises:
        UnlearnError: If it is not a number.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UnlearnError(f"{value!r} is not a number")
    return value


def _by_subject(values: Iterable[Any], subjects: Iterable[Hashable]) -> dict[Hashable, list[Any]]:
    found: dict[Hashable, list[Any]] = {}
    values, subjects = list(values), list(subjects)
    if len(values) != len(subjects):
        raise UnlearnError(f"subjects: expected one for each of {len(values)} values, got {len(subjects)}.")
    for value, subject in zip(values, subjects, strict=True):
        found.setdefault(subject, []).append(value)
    return found


def pair_auc(
    wins: Tensor, counts: Tensor | None = None, same: bool = False, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Return the mean outcome of compared pairs, with a bootstrap over the things on both sides.

    In each bootstrap draw the things are drawn with replacement, u_i and v_j being how often each was drawn:

        AUC* = sum_ij u_i v_j wins_ij / sum_ij u_i v_j counts_ij      (u = v if both sides are the same things)

    Args:
        wins (Tensor): `[n, m]`, the sum of the outcomes (0 to 1) of each pair's comparisons.
        counts (Tensor, *optional*): `[n, m]`, number of comparisons of each pair. None for one each.
        same (bool, *optional*, defaults to False): The two sides are the same things, compared with each other.
        draws (int, *optional*, defaults to 2000): Bootstrap draws.
        seed (int, *optional*, defaults to 0): Seed of the bootstrap.

    Returns:
        Estimate: The AUC. Its `n` counts the things of the first side that were compared.

    Raises:
        UnlearnError: If no pair was compared.
    """
    wins = wins.double()
    counts = torch.ones_like(wins) if counts is None else counts.double()
    if not bool((counts > 0).any()):
        raise UnlearnError("counts: expected at least one compared pair. Pass at least one thing on each side.")
    generator = torch.Generator().manual_seed(seed)
    u = times_drawn(len(wins), draws, generator)
    v = u if same else times_drawn(wins.shape[1], draws, generator)
    compared = ((u @ counts) * v).sum(dim=1)
    found = ((u @ wins) * v).sum(dim=1)[compared > 0] / compared[compared > 0]
    return Estimate(float(wins.sum() / counts.sum()), *percentile_interval(found), int((counts.sum(dim=1) > 0).sum()))
