"""`RowStatistics`: the gate's statistic of each row, and of the row's beginning alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.distributed import summed
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.offline import Reading, read_batch


SHORT_TOKENS = 24


class RowStatistics:
    """Statistics of rows, filled batch by batch. Rows of other processes are 0 until `share`.

    Args:
        rows (int): Number of rows.

    Attributes:
        whole (Tensor): Statistic of each row, `[rows]`.
        short (Tensor): Statistic of its first `SHORT_TOKENS` tokens alone, `[rows]`.
    """

    def __init__(self, rows: int) -> None:
        self.whole, self.short = torch.zeros(rows), torch.zeros(rows)

    def add(self, batch: ResidualBatch, encoder: nn.Module, config: SAEGuardrailConfig) -> Reading:
        """Read a batch of the rows, and return the gate's values on it."""
        reading = read_batch(batch, encoder, config)
        self.whole[batch.index] = reading.statistics
        self.short[batch.index] = reading.statistics_of_first(SHORT_TOKENS, config)
        return reading

    def share(self) -> None:
        """Take over the rows that other processes have run."""
        self.restore(summed(self.state()))

    def state(self) -> dict[str, Tensor]:
        """Return the statistics, which can be added to those of other rows."""
        return {"whole": self.whole, "short": self.short}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the statistics of `state`."""
        self.whole, self.short = state["whole"].clone(), state["short"].clone()
