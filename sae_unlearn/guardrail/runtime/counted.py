"""Tokens of a pass that the gate counts, that can be hot, and that end a message."""

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs


def counted_tokens(
    config: SAEGuardrailConfig, tables: ConfigTables, kept: Tensor, inputs: ForwardInputs
) -> tuple[Tensor, Tensor]:
    """Return the counted tokens, and those that can be hot, `[batch, seq]` bool each.

    Args:
        config (SAEGuardrailConfig): Special tokens and the counting.
        tables (ConfigTables): The layer's tables of token ids.
        kept (Tensor): `[batch, seq]` bool, False at padding.
        inputs (ForwardInputs): Inputs of the call.
    """
    if config.tokens.counting == "columns":
        everything = torch.ones_like(kept)
        first = torch.arange(kept.shape[1], device=kept.device) + inputs.past == 0
        return everything, everything & ~first
    if config.tokens.special_ids and inputs.input_ids is not None:
        kept = kept & tables.none_of(tuple(config.tokens.special_ids), inputs.input_ids, kept.device)
    return kept, kept


def ends_of_messages(
    config: SAEGuardrailConfig, tables: ConfigTables, kept: Tensor, inputs: ForwardInputs
) -> Tensor | None:
    """Return the tokens that end a message, `[batch, seq]` bool, or None if the config names none.

    The arguments are those of `counted_tokens`.
    """
    boundaries = config.tokens.boundary_ids
    if not boundaries:
        return None
    if inputs.input_ids is None:
        return torch.zeros_like(kept)
    return kept & ~tables.none_of(tuple(boundaries), inputs.input_ids, kept.device)
