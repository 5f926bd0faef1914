"""Tokens whose residual stream is many times larger than the others', which no mean may contain."""

import torch
from torch import Tensor

from sae_unlearn.guardrail.selection import FeatureSums


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
        self._pending: list[tuple[FeatureSums, Tensor]] = []

    def filter(self, owner: FeatureSums, tokens: Tensor) -> list[tuple[FeatureSums, Tensor]]:
        """What can be added now, for tokens `[tokens, d_in]` of a corpus."""
        self._pending.append((owner, tokens))
        if self.median is None and sum(len(t) for _, t in self._pending) < _WARM_UP_TOKENS:
            return []
        return self.flush()

    def usual(self, norms: Tensor) -> Tensor:
        """Which tokens are no outliers, of norms `[tokens]`: `[tokens]` bool. All, while no token has been seen."""
        return norms <= (float("inf") if self.median is None else self.factor * self.median)

    def flush(self) -> list[tuple[FeatureSums, Tensor]]:
        """What was held back."""
        pending, self._pending = self._pending, []
        if self.median is None and any(len(t) for _, t in pending):
            self.median = float(torch.cat([t.norm(dim=-1).cpu() for _, t in pending]).median())
        return [(owner, self._without_outliers(tokens)) for owner, tokens in pending]

    def _without_outliers(self, tokens: Tensor) -> Tensor:
        fits = self.usual(tokens.norm(dim=-1))
        self.dropped += int((~fits).sum())
        return tokens[fits]
