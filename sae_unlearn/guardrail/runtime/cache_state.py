"""The gate's state of a request, as an additional layer of the request's key-value cache.

transformers keeps it in step with the tokens there, and two requests cannot mix. See `gate_history`.

Tokens that were processed without the guardrail are detected by comparing two counts: the cache's tokens, and those
that the history has seen. If both are known on the host, the call raises. A static cache counts on the device: then the
counts are compared at the cache's first use and with every pass of several tokens. A decoding step and compiled code do
not wait for the device, and the result of `unseen` makes the activations NaN (see "not finite" in `gate.decision`).
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
"""Operations of a cache on each layer, and so on a history among its layers."""


def find_cache(values: Any) -> Cache | None:
    """Return the first transformers `Cache` of a decoder among the arguments of a call.

    `call_cache` has a function that raises for all others.
    """
    for value in values:  # a loop, since older versions of torch.compile cannot trace `next` of a generator
        if isinstance(value, Cache) and not isinstance(value, EncoderDecoderCache):
            return value
    return None


def past_length(cache: Cache | None) -> int | Tensor:
    """Return the number of tokens in the cache.

    An int or, for static caches, a 0-d tensor, which is a copy since the cache counts in place.
    """
    if cache is None or not knows_length(cache):
        return 0
    return cache.get_seq_length() + 0


def has_state(cache: Cache | None) -> bool:
    """Return True if a cache with only recurrent layers has earlier tokens.

    Such a cache does not know its length.
    """
    if cache is None or not _is_recurrent(cache):
        return False
    linear = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    return any(any(layer.has_previous_state.values()) for layer in linear)


def forget_unseen(values: Any, layer: int, seeing: list[str]) -> None:
    """Drop the state of guardrails that do not see this pass, if a cache does not know its length.

    Without the length they could not detect that they missed tokens.

    Args:
        values (Any): Arguments of the call.
        layer (int): 0-based index of the layer.
        seeing (list of str): Names of the guardrails that see this pass.
    """
    kept = {*seeing, *(tokens_of(name) for name in seeing)}

    def stays(held: Any) -> bool:
        return not isinstance(held, GateHistory) or held.owner[0] != layer or held.owner[1] in kept

    for cache in values:
        if isinstance(cache, Cache) and not isinstance(cache, EncoderDecoderCache) and _is_recurrent(cache):
            cache.layers = [held for held in cache.layers if stays(held)]


def tokens_of(name: str) -> str:
    """Return the name of the history with the last tokens of guardrail `name`, for `action="refuse"`."""
    return f"{name}: tokens"


def _is_recurrent(cache: Cache) -> bool:
    """True if a cache has only recurrent layers, and histories."""
    return not any(isinstance(held, CacheLayerMixin) and not isinstance(held, GateHistory) for held in cache.layers)


def history_of(
    cache: Cache, owner: Owner, past: int | Tensor, recurrent: bool, num_layers: int, max_positions: int, seq: int
) -> GateHistory:
    """Return the history of `owner` in this cache. It is added at the cache's first use.

    Args:
        cache (Cache): The cache.
        owner (Owner): Layer and name of the guardrail.
        past (int or Tensor): Tokens in the cache before this pass, see `past_length`.
        recurrent (bool): See `has_state`.
        num_layers (int): Number of decoder layers.
        max_positions (int): Largest number of tokens.
        seq (int): Tokens of this pass.

    Raises:
        GuardrailNotReady: If the cache has tokens that this guardrail has not seen.
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
    """Return a 0-d bool on `device`: the cache has tokens that the history lacks.

    None if the host knows that it has none. It must be called before the pass is added to the history.
    """
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
            f"{type(cache).__name__} overrides how to {_BY_LAYERS[own[0]]}, so guardrail {owner[1]!r} cannot keep its "
            "state there. Call the model, and `generate`, with use_cache=False."
        )
    if (
        cache.layer_class_to_replicate is not None
    ):  # the model's own layers are created one by one: reserve their places
        while len(cache.layers) < num_layers:
            cache.layers.append(cache.layer_class_to_replicate())
    static = [layer for layer in cache.layers if isinstance(layer, StaticLayer)]
    if static:
        lengths = [layer.max_cache_len for layer in static if not layer.is_sliding]
        first = next(layer for layer in cache.layers if isinstance(layer, CacheLayerMixin))  # its length is requested
        history: GateHistory = StaticGateHistory(
            owner, max(lengths, default=max_positions), getattr(first, "is_sliding", False)
        )
    else:
        history = DynamicGateHistory(owner)
    cache.layers.append(history)
    return history


def _unseen(owner: Owner, past: int | Tensor, seen: int | Tensor) -> str:
    who = f"guardrail {owner[1]!r} (layer {owner[0]})"
    counts = f"{int(past)} tokens and {who} has seen {int(seen)}" if past != seen else f"tokens that {who} has not seen"
    return (
        f"The cache holds {counts}: it was filled without the guardrail or while it was disabled. Run the prompt again "
        "with the guardrail active and a new cache."
    )
