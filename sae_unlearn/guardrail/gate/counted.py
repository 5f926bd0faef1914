"""Tokens that the gate counts, that can be hot, and that end a message.

    counting="content"    counted: kept by the mask, and not special      can be hot: the counted ones
    counting="columns"    counted: every column, padding included         can be hot: all but column 0
    ends of messages      kept, and in `boundary_ids`

This is the only place for rows of tokens. Packed rows (`packed_step`) have no padding and take the parts that read
ids. One decoded token restates the first line, in Python (`kernels.cpu_step`) and in the kernel
(`kernels.triton_kernels`): an operator costs as much as the whole gate there.
"""

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables


def not_special(config: SAEGuardrailConfig, tables: ConfigTables, ids: Tensor, device: torch.device) -> Tensor | None:
    """Return the tokens that are not special, bool in the shape of `ids`; None if the config names none."""
    special = config.tokens.special_ids
    return tables.none_of(tuple(special), ids, device) if special else None


def boundaries(config: SAEGuardrailConfig, tables: ConfigTables, ids: Tensor, device: torch.device) -> Tensor | None:
    """Return the tokens of `boundary_ids`, bool in the shape of `ids`; None if the config names none."""
    named = config.tokens.boundary_ids
    return ~tables.none_of(tuple(named), ids, device) if named else None


def content_tokens(config: SAEGuardrailConfig, tables: ConfigTables, kept: Tensor, ids: Tensor | None) -> Tensor:
    """Return `[batch, seq]` bool: the tokens that are neither padding nor special.

    Args:
        config (SAEGuardrailConfig): Special tokens.
        tables (ConfigTables): Tables of token ids.
        kept (Tensor): `[batch, seq]` bool, False at padding.
        ids (Tensor, *optional*): `[batch, seq]`. None if the model got embeddings: then no token is special.
    """
    content = None if ids is None else not_special(config, tables, ids, kept.device)
    return kept if content is None else kept & content


def counted_tokens(
    config: SAEGuardrailConfig, tables: ConfigTables, kept: Tensor, ids: Tensor | None, past: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """Return the counted tokens, and those that can be hot, `[batch, seq]` bool each.

    If they are the same tokens, they are one object. The other arguments are those of `content_tokens`.

    Args:
        past (int or Tensor, *optional*, defaults to 0): Columns before this pass, an int or a 0-d tensor.
    """
    if config.tokens.counting == "columns":
        everything = torch.ones_like(kept)
        first = torch.arange(kept.shape[1], device=kept.device) + past == 0
        return everything, everything & ~first
    content = content_tokens(config, tables, kept, ids)
    return content, content


def ends_of_messages(
    config: SAEGuardrailConfig, tables: ConfigTables, kept: Tensor, ids: Tensor | None
) -> Tensor | None:
    """Return the tokens that end a message, `[batch, seq]` bool, or None if the config names none.

    The arguments are those of `content_tokens`.
    """
    if not config.tokens.boundary_ids:
        return None
    found = None if ids is None else boundaries(config, tables, ids, kept.device)
    return torch.zeros_like(kept) if found is None else kept & found
