"""The gate's state of a request, kept as one more layer of the request's own key-value cache.

There transformers itself keeps it in step with the tokens, and two requests can never mix; see `gate_history`.

Tokens that went by without the guardrail are found by comparing two counts: what the cache holds, and what the history
has seen. Where both are known on the host the call raises. A static cache counts on the device: there the counts are
read at the cache's first use and with every pass of several tokens; a decoding step and compiled code wait for nothing,
and what `unseen` finds makes the activations NaN (see "not finite" in `gate`).
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
)

from sae_unlearn.backbone.call_arguments import knows_length
from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory, GateHistory, Owner, StaticGateHistory


_BY_LAYERS = {
    "__len__": "count its layers",
    "batch_select_indices": "choose rows",
    "batch_repeat_interleave": "repeat rows",
}
"""What a cache does layer by layer, and so to a history that is among its layers."""


def find_cache(values: Any) -> Cache | None:
    """The first transformers `Cache` of a decoder among the arguments of a call; see `call_cache` for one that raises
    for all others."""
    for value in values:  # not `next` of a generator, which older versions of torch.compile cannot read
        if isinstance(value, Cache) and not isinstance(value, EncoderDecoderCache):
            return value
    return None


def past_length(cache: Cache | None) -> int | Tensor:
    """Tokens already in the cache: an int, or (static caches) a 0-d tensor, copied since it counts in place."""
    if cache is None or not knows_length(cache):
        return 0
    return cache.get_seq_length() + 0


def has_state(cache: Cache | None) -> bool:
    """Whether a cache of recurrent layers only, which do not know their length, holds earlier tokens."""
    if cache is None or not _is_recurrent(cache):
        return False
    linear = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    return any(any(layer.has_previous_state.values()) for layer in linear)


def forget_unseen(values: Any, layer: int, seeing: list[str]) -> None:
    """Drop what the guardrails at `layer`, all but those called `seeing`, know of a request of which they do not see
    this pass, if a cache among `values` does not know its length: by it they could not tell that they missed tokens."""
    kept = {*seeing, *(tokens_of(name) for name in seeing)}

    def stays(held: Any) -> bool:
        return not isinstance(held, GateHistory) or held.owner[0] != layer or held.owner[1] in kept

    for cache in values:
        if isinstance(cache, Cache) and not isinstance(cache, EncoderDecoderCache) and _is_recurrent(cache):
            cache.layers = [held for held in cache.layers if stays(held)]


def tokens_of(name: str) -> str:
    """What the history is called in which the guardrail `name` keeps the last tokens, where it refuses."""
    return f"{name}: tokens"


def _is_recurrent(cache: Cache) -> bool:
    """Whether a cache has no layers but recurrent ones, and histories."""
    return not any(isinstance(held, CacheLayerMixin) and not isinstance(held, GateHistory) for held in cache.layers)


def history_of(
    cache: Cache, owner: Owner, past: int | Tensor, recurrent: bool, num_layers: int, max_positions: int, seq: int
) -> GateHistory:
    """The history of `owner` in this cache, added at the cache's first use.

    Args:
        past, recurrent: what the cache held before this forward pass, see `past_length` and `has_state`.
        seq: tokens of this pass.

    Raises:
        GuardrailNotReady: the cache holds tokens that this guardrail has not seen, so what they said is unknown.
    """
    history = _find_history(cache, owner)
    seen = 0 if history is None else history.seen()
    look = (isinstance(past, int) and isinstance(seen, int)) or (
        not torch.compiler.is_compiling() and (history is None or seq > 1)
    )
    if (recurrent and history is None) or (look and bool(past != seen)):
        raise GuardrailNotReady(_unseen(owner, past, seen))
    return _add_history(cache, owner, num_layers, max_positions) if history is None else history


def unseen(history: GateHistory, past: int | Tensor, device: torch.device) -> Tensor | None:
    """0-d bool on `device`: whether the cache holds tokens that the history lacks. None if the host knows that it does
    not. To be asked before the pass is added to the history."""
    seen = history.seen()
    if isinstance(past, int) and isinstance(seen, int):
        return None
    past, seen = (count.to(device) if isinstance(count, Tensor) else count for count in (past, seen))
    return past != seen  # type: ignore[return-value]  # one of them is a tensor


def _find_history(cache: Cache, owner: Owner) -> GateHistory | None:
    for layer in cache.layers:
        if isinstance(layer, GateHistory) and layer.owner == owner:
            return layer
    return None


def _add_history(cache: Cache, owner: Owner, num_layers: int, max_positions: int) -> GateHistory:
    own = [name for name in _BY_LAYERS if getattr(type(cache), name).__module__ != Cache.__module__]
    if own:
        raise GuardrailNotReady(
            f"{type(cache).__name__} has a way of its own to {_BY_LAYERS[own[0]]}, so guardrail {owner[1]!r} cannot "
            "keep its state there. Call the model, and `generate`, with use_cache=False."
        )
    if cache.layer_class_to_replicate is not None:  # the model's own layers are created one by one: make room for all
        while len(cache.layers) < num_layers:
            cache.layers.append(cache.layer_class_to_replicate())
    static = [layer for layer in cache.layers if isinstance(layer, StaticLayer)]
    if static:
        lengths = [layer.max_cache_len for layer in static if not layer.is_sliding]
        first = next(layer for layer in cache.layers if isinstance(layer, CacheLayerMixin))  # whose length is asked for
        history: GateHistory = StaticGateHistory(
            owner, max(lengths, default=max_positions), getattr(first, "is_sliding", False)
        )
    else:
        history = DynamicGateHistory(owner)
    cache.layers.append(history)
    return history


def _unseen(owner: Owner, past: int | Tensor, seen: int | Tensor) -> str:
    who = f"guardrail {owner[1]!r} (layer {owner[0]})"
    counts = (
        f"{int(past)} tokens, of which {who} has seen {int(seen)}"
        if past != seen
        else f"tokens that {who} has not seen"
    )
    return (
        f"The cache holds {counts}: it was filled without it, or while it was disabled. Run the prompt again with the "
        "guardrail active and a new cache."
    )
