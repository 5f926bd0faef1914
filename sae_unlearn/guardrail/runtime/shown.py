"""Consistency of masks over passes: tokens shown later must have been shown to the gate.

A token that the mask hides while it is current is padding: it is neither counted nor hot. In a later pass the mask
covers that token again, among the columns of the past, and could show it: text that no gate has judged. So a history
stores for each token whether it was kept (`gate.State.kept`), and no later mask may show more:

    lost_row = [some column of the past is shown now, and was hidden then]

Such rows raise if the host knows it, or may wait for the device. Otherwise the activations of the row become NaN (see
"not finite" in `gate.decision`). Hiding a kept token is allowed.

Models with recurrent layers include a single token in their state whatever the mask says, and all tokens if the mask is
4-D (transformers' `create_recurrent_attention_mask`): then no token is padding.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.gate.decision import State
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory, GateHistory
from sae_unlearn.guardrail.runtime.mask_reading import PassMasks, is_2d
from sae_unlearn.guardrail.runtime.masks import shown_by


def takes_in_all(config: Any) -> bool:
    """Return True if a model of this config has recurrent layers.

    The cache that transformers makes for it shows that.
    """
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # not a config of a decoder
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def shown_before(mask: Any, past: int, device: torch.device) -> Tensor:
    """Return `[batch or 1, past]`, not 0 where a 2-D mask shows a token of an earlier pass.

    Without a mask it is nowhere 0.
    """
    return torch.ones(1, 1, device=device).expand(1, past) if mask is None else mask[:, :past].to(device)


def shown_again(masks: PassMasks, history: GateHistory, past: int | Tensor, seq: int) -> Tensor | None:
    """Return the rows in which a mask shows a token that was hidden when it was current, `[batch]` bool.

    None if the host knows that no row has one. It must be called before the pass is added to the history.

    Args:
        masks (PassMasks): The masks of the pass. Without one that shows padding everything is shown.
        history (GateHistory): The history.
        past (int or Tensor): Tokens in the cache before this pass.
        seq (int): Tokens of this pass.
    """
    if history.whole or (isinstance(past, int) and past == 0) or not history.is_initialized:
        return None
    kept = State.of(history.keys[:, 0, : past if isinstance(past, int) else None]).kept
    if not masks.telling:
        lost = kept == 0
        return (lost if isinstance(past, int) else lost & _before(past, kept)).any(dim=1)
    again = _shown_by_one(masks.telling[0], kept, past, seq, masks.arithmetic)
    for mask in masks.telling[1:]:
        again = again | _shown_by_one(mask, kept, past, seq, masks.arithmetic)
    return again


def _shown_by_one(mask: Tensor, kept: Tensor, past: int | Tensor, seq: int, arithmetic: torch.dtype) -> Tensor:
    """The rows of one mask, `[batch]` bool, for `kept [batch, tokens of the past]`."""
    if is_2d(mask):
        mask = mask.to(kept.device)
        if isinstance(past, int):
            return ((mask[:, :past] != 0) > kept).any(dim=1)
        width = min(mask.shape[1], kept.shape[1])
        lost = (mask[:, :width] != 0) > kept[:, :width]
        return (lost & _before(past, lost)).any(dim=1)
    visible, start = shown_by(mask, past, seq, arithmetic)
    visible = visible.to(kept.device)
    if isinstance(past, Tensor) and visible.shape[1] >= kept.shape[1]:  # the mask covers the whole static cache
        lost = visible[:, : kept.shape[1]] > kept
        return (lost & _before(past, lost)).any(dim=1)
    if isinstance(past, int):
        return (visible[:, :start] > kept[:, past - start :]).any(dim=1)
    columns = torch.arange(visible.shape[1], device=kept.device)
    first, end = torch.as_tensor(start).to(kept.device), past.to(kept.device)
    places = (columns + end - first).clamp(max=kept.shape[1] - 1)
    return ((visible > kept.index_select(1, places)) & (columns < first)).any(dim=1)


def check_shown(lost: Tensor) -> None:
    """Raise for the result of `shown_again`. It waits for the device.

    Raises:
        GuardrailNotReady: If a hidden token is shown.
    """
    if bool(lost.any()):
        raise GuardrailNotReady(SHOWN_AGAIN)


def check_on_host(earlier: Tensor, history: DynamicGateHistory) -> None:
    """Raise for what `shown_again` would find, with tensors on the host.

    It takes two operators, or none if all tokens were kept.

    Args:
        earlier (Tensor): From `shown_before`.
        history (DynamicGateHistory): The history.

    Raises:
        GuardrailNotReady: If a hidden token is shown.
    """
    hidden = history.hidden()
    if hidden is None:
        return
    rows, places = hidden
    if bool(earlier.expand(len(history.keys), -1)[rows, places].any()):
        raise GuardrailNotReady(SHOWN_AGAIN)


SHOWN_AGAIN = (
    "The attention mask shows tokens of an earlier pass that it hid when they were current, so no guardrail has judged "
    "them. Pass the same mask for them, or run the prompt again with a new cache."
)


def _before(past: Tensor, like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) < past.to(like.device)
