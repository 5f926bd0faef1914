"""Explained variance of an SAE on a sample of a corpus: the first tokens of each batch.

An SAE explains the topics of its training texts better than others.

explained = 1 - sum |h - h'|^2 / sum |h - mean(h)|^2
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sae_unlearn.sae import SparseAutoencoder


SAMPLE = 64  # tokens of a batch: the same sample however processes share the batches


class Reconstruction:
    """Sums over the first content tokens of each batch of a corpus.

    Attributes:
        tokens (int): Number of tokens added.
    """

    def __init__(self, d_in: int) -> None:
        self.tokens = 0
        self._error = torch.zeros((), dtype=torch.float64)
        self._power = torch.zeros((), dtype=torch.float64)
        self._total = torch.zeros(d_in, dtype=torch.float64)

    def add(self, sae: SparseAutoencoder, residual: Tensor, activations: Tensor) -> None:
        """Add the first tokens of a batch, `[tokens, d_in]`, with their activations `[tokens, d_sae]`."""
        if sae.input_norm is not None:  # their decoder gives a normalized residual
            return
        h = residual[:SAMPLE].to(sae.device).double()
        self._error += (sae.decode(activations[:SAMPLE]).double() - h).square().sum().cpu()
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
        return round(1 - float(self._error) / variance, 4) if variance > 0 else None
