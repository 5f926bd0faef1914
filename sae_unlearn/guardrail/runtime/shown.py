"""What a mask shows of earlier passes must be what the gate was shown there.

A token that the mask hides while it is current is padding: it is neither counted nor hot. In a later pass the mask
covers that token again, among the columns of the past, and could show it: text that no gate has judged. So a history
holds for each token whether it was kept (`gate.State.kept`), and no later mask may show more:

    lost_row = [some column of the past is shown now, and was hidden then]

Rows of which this holds raise where the host knows it, or may wait for the device to tell it. Where it may not, the
activations of the row become NaN (see "not finite" in `gate`). Hiding what was kept is no fault.

Models with recurrent layers take a single token into their state whatever the mask says, and all tokens if the mask is
4-D (transformers' `create_recurrent_attention_mask`): there nothing is padding.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.gate import State
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory, GateHistory
from sae_unlearn.guardrail.runtime.masks import shown_by


def takes_in_all(config: Any) -> bool:
    """Whether a model of this config has recurrent layers, by the cache that transformers makes for it."""
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # no config of a decoder
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def shown_before(mask: Any, past: int, device: torch.device) -> Tensor:
    """`[batch or 1, past]`, not 0 where a 2-D mask shows a token of an earlier pass; everywhere without a mask."""
    return torch.ones(1, 1, device=device).expand(1, past) if mask is None else mask[:, :past].to(device)


def shown_again(masks: list[Any], history: GateHistory, past: int | Tensor, seq: int) -> Tensor | None:
    """`[batch]` bool: the rows of which a mask shows a token that was hidden when it was current. None if the host
    knows that there is none. To be asked before the pass is added to the history.

    Args:
        masks: those that tell what is padding, each 2-D or that of an attention kernel; none show everything.
        past: tokens in the cache before this pass.
        seq: tokens of this pass.

    Raises:
        NotImplementedError: the mask is of a kind that does not tell, and tokens were hidden.
    """
    if history.whole or (isinstance(past, int) and past == 0) or not history.is_initialized:
        return None
    kept = State.of(history.keys[:, 0, : past if isinstance(past, int) else None]).kept
    if not masks:
        lost = kept == 0
        return (lost if isinstance(past, int) else lost & _before(past, kept)).any(dim=1)
    again = _shown_by_one(masks[0], kept, past, seq)
    for mask in masks[1:]:
        again = again | _shown_by_one(mask, kept, past, seq)
    return again


def _shown_by_one(mask: Any, kept: Tensor, past: int | Tensor, seq: int) -> Tensor:
    """`[batch]` bool, of one mask, for `kept [batch, tokens of the past]`."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        mask = mask.to(kept.device)
        if isinstance(past, int):
            return ((mask[:, :past] != 0) > kept).any(dim=1)
        columns = min(mask.shape[1], kept.shape[1])
        lost = (mask[:, :columns] != 0) > kept[:, :columns]
        return (lost & _before(past, lost)).any(dim=1)
    visible, start = shown_by(mask, past, len(kept), seq)
    visible = visible.to(kept.device)
    if isinstance(past, Tensor) and visible.shape[1] >= kept.shape[1]:  # of the whole of a static cache
        lost = visible[:, : kept.shape[1]] > kept
        return (lost & _before(past, lost)).any(dim=1)
    if isinstance(past, int):
        return (visible[:, :start] > kept[:, past - start :]).any(dim=1)
    columns = torch.arange(visible.shape[1], device=kept.device)
    first, end = torch.as_tensor(start).to(kept.device), past.to(kept.device)
    places = (columns + end - first).clamp(max=kept.shape[1] - 1)
    return ((visible > kept.index_select(1, places)) & (columns < first)).any(dim=1)


def check_shown(lost: Tensor) -> None:
    """Raise for what `shown_again` found, which waits for the device.

    Raises:
        GuardrailNotReady: a token is shown that was hidden.
    """
    if bool(lost.any()):
        raise GuardrailNotReady(SHOWN_AGAIN)


def check_on_host(earlier: Tensor, history: DynamicGateHistory) -> None:
    """Raise for what `shown_again` would find, of tensors on the host: two operators, and none where all was kept.

    Args:
        earlier: from `shown_before`.

    Raises:
        GuardrailNotReady: a token is shown that was hidden.
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
