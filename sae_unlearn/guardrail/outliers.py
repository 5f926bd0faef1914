"""Tokens whose residual stream is many times larger than the others', which no mean may contain."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sae_unlearn.guardrail.fit.selection import FeatureSums


OUTLIER_FACTOR = 2.0
_WARM_UP_TOKENS = 2048


class OutlierFilter:
    """Leaves out tokens whose residual norm exceeds `factor` times the median.

    A few tokens have norms ten times the others' and would rule every mean. The median is that of the first
    2,048 tokens, which are held back until it is known.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.median: float | None = None
        self.dropped = 0
        self._pending: list[tuple[FeatureSums | None, Tensor]] = []

    def state(self) -> dict[str, Tensor]:
        """The median, once it is known, and what was left out."""
        median = torch.tensor(torch.nan if self.median is None else self.median, dtype=torch.float64)
        return {"median": median, "dropped": torch.tensor(self.dropped)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the median and count of `state`, which was taken once the median was known."""
        self.median, self.dropped = float(state["median"]), int(state["dropped"])

    def filter(self, owner: FeatureSums | None, tokens: Tensor) -> list[tuple[FeatureSums, Tensor]]:
        """What can be added now, for tokens `[tokens, d_in]` of a corpus. Those of no owner, which other processes
        add, count for the median only."""
        self._pending.append((owner, tokens))
        if self.median is None and sum(len(t) for _, t in self._pending) < _WARM_UP_TOKENS:
            return []
        return self.flush()

    @property
    def limit(self) -> float:
        """The largest norm of a token that is no outlier; infinite while no token has been seen."""
        return float("inf") if self.median is None else self.factor * self.median

    def usual(self, norms: Tensor) -> Tensor:
        """Which tokens are no outliers, of norms `[tokens]`: `[tokens]` bool. All, while no token has been seen."""
        return norms <= self.limit

    def flush(self) -> list[tuple[FeatureSums, Tensor]]:
        """What was held back."""
        pending, self._pending = self._pending, []
        if self.median is None and any(len(t) for _, t in pending):
            self.median = float(torch.cat([t.norm(dim=-1).cpu() for _, t in pending]).median())
        return [(owner, self._without_outliers(tokens)) for owner, tokens in pending if owner is not None]

    def _without_outliers(self, tokens: Tensor) -> Tensor:
        fits = self.usual(tokens.norm(dim=-1))
        self.dropped += int((~fits).sum())
        return tokens[fits]
