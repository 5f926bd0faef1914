"""The gate's state of a request, kept as one more layer of the request's own key-value cache.

There it is reordered with the beams, cropped with rejected drafts, repeated, selected, copied and reset by transformers
itself, and two requests can never mix. An entry costs `4 * STATE_SIZE` bytes per token and guardrail.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin, StaticLayer

from sae_unlearn.guardrail.errors import GuardrailNotReady
from sae_unlearn.guardrail.gate import HITS, TOKENS, Series


Owner = tuple[int, str]  # (layer, adapter name)


class GateHistory:
    """What the two kinds of history share. The state is `keys [batch, 1, tokens, STATE_SIZE]`; `values` are empty."""

    owner: Owner
    keys: Tensor
    update: Callable[..., Any]
    get_seq_length: Callable[..., Any]

    def last(self) -> Tensor | None:
        """`[batch, STATE_SIZE]` after the last token, or None if there is none yet."""
        raise NotImplementedError

    def series(self) -> Series | None:
        """The sums of all tokens so far."""
        raise NotImplementedError

    def append(self, state: Tensor) -> None:
        """Add the states of a forward pass, `[batch, seq, STATE_SIZE]`."""
        keys = state[:, None]
        self.update(keys, keys[..., :0])


class DynamicGateHistory(GateHistory, DynamicLayer):
    """History that grows with the sequence."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.owner = owner

    def last(self) -> Tensor | None:
        return self.keys[:, 0, -1] if self.get_seq_length() > 0 else None

    def series(self) -> Series | None:
        return Series(self.keys[:, 0, :, HITS], self.keys[:, 0, :, TOKENS]) if self.get_seq_length() > 0 else None


class StaticGateHistory(GateHistory, StaticLayer):
    """History of fixed size, for caches whose shape must not change (`torch.compile`, CUDA graphs)."""

    def __init__(self, owner: Owner, max_cache_len: int) -> None:
        super().__init__(max_cache_len=max_cache_len)
        self.owner = owner

    def last(self) -> Tensor | None:
        if not self.is_initialized:
            return None
        index = (self.cumulative_length - 1).clamp(min=0).reshape(1)
        return self.keys[:, 0].index_select(1, index)[:, 0]  # all zeros, the state of an empty row, if none is written

    def series(self) -> Series | None:
        if not self.is_initialized:
            return None
        written = torch.arange(self.max_cache_len, device=self.keys.device) < self.cumulative_length
        tokens = self.keys[:, 0, :, TOKENS].masked_fill(~written, torch.inf)
        return Series(self.keys[:, 0, :, HITS], tokens)


def find_cache(values: Any) -> Cache | None:
    """The first transformers `Cache` among the arguments of a call."""
    for value in values:  # not `next` of a generator, which older versions of torch.compile cannot read
        if isinstance(value, Cache):
            return value
    return None


def past_length(cache: Cache | None) -> int | Tensor:
    """Tokens already in the cache: an int, or (static caches) a 0-d tensor, copied since it counts in place."""
    if cache is None or not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return 0
    return cache.get_seq_length() + 0


def has_state(cache: Cache | None) -> bool:
    """Whether a cache of recurrent layers only, which do not know their length, holds earlier tokens."""
    if cache is None or any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return False
    linear = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    return any(any(layer.has_previous_state.values()) for layer in linear)


def history_of(
    cache: Cache, owner: Owner, past: int | Tensor, recurrent: bool, num_layers: int, max_positions: int, check: bool
) -> GateHistory:
    """The history of `owner` in this cache, added at the cache's first use.

    Args:
        past, recurrent: what the cache held before this forward pass, see `past_length` and `has_state`.

    Raises:
        GuardrailNotReady: the cache holds tokens that this guardrail has not seen, so what they said is unknown.
    """
    history = _find_history(cache, owner)
    if history is None:
        if check and (recurrent or bool(past > 0)):
            raise GuardrailNotReady(_unseen(owner, past, 0))
        return _add_history(cache, owner, num_layers, max_positions)
    seen = history.get_seq_length()
    # a sliding static layer counts in an int and the history in a tensor, which compiled code cannot compare
    if isinstance(past, int) and (check or isinstance(seen, int)) and seen != past:
        raise GuardrailNotReady(_unseen(owner, past, int(seen)))
    return history


def _find_history(cache: Cache, owner: Owner) -> GateHistory | None:
    for layer in cache.layers:
        if isinstance(layer, GateHistory) and layer.owner == owner:
            return layer
    return None


def _add_history(cache: Cache, owner: Owner, num_layers: int, max_positions: int) -> GateHistory:
    if cache.layer_class_to_replicate is not None:  # the model's own layers are created one by one: make room for all
        while len(cache.layers) < num_layers:
            cache.layers.append(cache.layer_class_to_replicate())
    static = [layer for layer in cache.layers if isinstance(layer, StaticLayer)]
    if static:
        lengths = [layer.max_cache_len for layer in static if not layer.is_sliding]
        history: GateHistory = StaticGateHistory(owner, max(lengths, default=max_positions))
    else:
        history = DynamicGateHistory(owner)
    cache.layers.append(history)
    return history


def _unseen(owner: Owner, past: int | Tensor, seen: int) -> str:
    return (
        f"The cache holds {int(past)} tokens, of which guardrail {owner[1]!r} (layer {owner[0]}) has seen {seen}: it "
        "was filled without it, or while it was disabled. Run the prompt again with the guardrail active and a new "
        "cache."
    )
