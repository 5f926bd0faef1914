"""What a guardrail makes of rows outside of a model's call, for fitting and checking: the gate's own functions, on the
residual streams of `residual_batches`."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.residuals import ResidualBatch
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate import row_statistic


class Reading(NamedTuple):
    """What the gate reads in a batch.

    Attributes:
        statistics: `[batch]`, the value that is compared with the threshold.
        hot_activations: `[hot tokens, N]`, activations of the guarded features where one of them is active.
        hot_norms: `[hot tokens]`, norms of the residual stream there.
    """

    statistics: Tensor
    hot_activations: Tensor
    hot_norms: Tensor


def content_tokens(batch: ResidualBatch, config: SAEGuardrailConfig) -> Tensor:
    """`[batch, seq]` bool: neither padding nor special."""
    special = torch.tensor(config.special_token_ids or [], dtype=torch.long, device=batch.input_ids.device)
    return batch.kept & ~torch.isin(batch.input_ids, special)


def read_batch(batch: ResidualBatch, encoder: nn.Module, config: SAEGuardrailConfig) -> Reading:
    """The gate's statistic for each row, each judged as if it were alone.

    Args:
        encoder: gives the guarded features' activations `[..., N]`, 0 where they are not active.
    """
    activations = encoder.to(batch.residual.device)(batch.residual)
    if config.counting == "columns":  # a row's own columns: here there is no batch whose padding could be counted
        counted = batch.kept
        eligible = batch.kept & (torch.arange(batch.kept.shape[1], device=batch.kept.device) > 0)
    else:
        counted = eligible = content_tokens(batch, config)
    hot = (activations > 0).any(dim=-1) & eligible
    return Reading(
        row_statistic(hot, counted, config).cpu(), activations[hot], batch.residual[hot].float().norm(dim=-1)
    )
