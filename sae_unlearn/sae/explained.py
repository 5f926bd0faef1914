"""`ExplainedVariance`: the share of a residual stream that an SAE reconstructs, from sums over parts."""

from collections.abc import Mapping

import torch
from torch import Tensor


class ExplainedVariance:
    """Sums over tokens `h` and their reconstructions `h'`, in constant memory and float64.

        explained = 1 - sum |h - h'|^2 / sum |h - mean(h)|^2
        sum |h - mean(h)|^2 = sum |h|^2 - |sum h|^2 / tokens

    Args:
        d_in (int): Width of the model.

    Attributes:
        tokens (int): Number of tokens added.
    """

    def __init__(self, d_in: int) -> None:
        self.tokens = 0
        self._error = torch.zeros((), dtype=torch.float64)
        self._power = torch.zeros((), dtype=torch.float64)
        self._total = torch.zeros(d_in, dtype=torch.float64)

    def add(self, h: Tensor, reconstructed: Tensor) -> None:
        """Add tokens and their reconstructions, `[tokens, d_in]` each."""
        h = h.double()
        self._error += (reconstructed.double() - h).square().sum().cpu()
        self._power += h.square().sum().cpu()
        self._total += h.sum(dim=0).cpu()
        self.tokens += len(h)

    def state(self) -> dict[str, Tensor]:
        """Return the sums, which can be added to those of other tokens."""
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return {"tokens": tokens, "error": self._error, "power": self._power, "total": self._total}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums of `state`."""
        self.tokens = int(state["tokens"])
        self._error, self._power, self._total = (state[name].clone() for name in ("error", "power", "total"))

    def explained(self) -> float | None:
        """Return the explained variance; None without tokens that vary."""
        if not self.tokens:
            return None
        variance = float(self._power - self._total.square().sum() / self.tokens)
        return 1 - float(self._error) / variance if variance > 0 else None
