"""Statistics of the gate that the package had once and that the evidence does not recommend, of whole rows.

With `hot_t`, `counted_t`, `H`, `N` and `m` of `sae_unlearn.guardrail.gate.decision`, `W = window` and `k = drift`,

    window             max_t (H_t - H_{t-W}) / min(max(N_t, m), W)       H_{t-W}: W counted tokens earlier
    cusum              max_t (Y_t - min_{r<=t} Y_r),  Y_t = H_t - k N_t,  Y_0 = 0
    ratio_or_window    max(ratio at the row's end, window_weight * window)

They stay here so that `statistics` can be run again. Source: Page 1954 for `cusum`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RemovedStatistic:
    """One of the statistics with its parameters."""

    name: str
    window: int = 64
    drift: float = 0.5
    window_weight: float = 0.35

    def of_rows(self, hot: Tensor, counted: Tensor, min_tokens: int) -> Tensor:
        """Return the statistic of each row, `[batch]`.

        Args:
            hot (Tensor): `[batch, seq]`, how hot each token is.
            counted (Tensor): `[batch, seq]` bool.
            min_tokens (int): `m`.
        """
        hits, tokens = hot.double().cumsum(dim=1), counted.double().cumsum(dim=1)
        if self.name == "cusum":
            y = hits - self.drift * tokens
            return (y - y.cummin(dim=1).values.clamp(max=0)).amax(dim=1)
        at = torch.searchsorted(tokens, tokens - self.window, right=True) - 1
        earlier = torch.where(at >= 0, hits.gather(1, at.clamp(min=0)), 0)
        recent = ((hits - earlier) / tokens.clamp(min=min_tokens, max=self.window)).amax(dim=1)
        if self.name == "window":
            return recent
        ratio = hits[:, -1] / tokens[:, -1].clamp(min=min_tokens)
        return torch.maximum(ratio, self.window_weight * recent)
