"""The forward passes of a step: up to the aligned layer for entities, in full for retain rows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.logits import head_sees
from sae_unlearn.backbone.truncation import truncated


def last_states(
    model: nn.Module, bare: nn.Module, layer: int, inputs: Mapping[str, Any], with_still: bool
) -> tuple[Tensor, Tensor | None]:
    """Residual stream at the last tokens of targets and of entities that are to stay: `[rows, d_in]` each.

    Args:
        model: what is called; it wraps `bare`, which holds the layers.
        inputs: a batch of `AlignmentItems`.
        with_still: whether the entities that are to stay are run; their states are None else.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if with_still:
        width = max(ids.shape[1], inputs["still_ids"].shape[1])
        both = zip((ids, mask), (inputs["still_ids"], inputs["still_mask"]), strict=True)
        ids, mask = (torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in pair]) for pair in both)
    with truncated(bare, layer):
        residual = model(input_ids=ids, attention_mask=mask, use_cache=False)
    last = residual[torch.arange(len(ids), device=residual.device), mask.sum(dim=1).to(residual.device) - 1]
    if not with_still:
        return last, None
    h, still = last.split([len(inputs["input_ids"]), len(inputs["still_ids"])])
    return h, still


def retain_logits(model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """`[tokens, vocabulary]` at the places of the retain rows that count; arguments as of `last_states`."""
    wanted = inputs["retain_at"]
    with head_sees(bare, wanted) as picked:
        rows = {"input_ids": inputs["retain_ids"], "attention_mask": inputs["retain_mask"]}
        logits = model(**rows, use_cache=False).logits
    return logits[0] if picked else logits[wanted]
