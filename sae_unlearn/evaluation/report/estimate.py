"""A measured number that is never without its interval and its n."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.checks import check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.intervals import bootstrap_interval
from sae_unlearn.stats import wilson_interval


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
