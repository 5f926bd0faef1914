"""The gate's state of a request, kept as one more layer of the request's own key-value cache.

There it is reordered with the beams, cropped with rejected drafts, repeated, selected, copied and reset by transformers
itself, and two requests can never mix. An entry costs `4 * STATE_SIZE` bytes per token and guardrail.

Tokens that went by without the guardrail are found by comparing two counts: what the cache holds, and what the history
has seen. Where both are known on the host the call raises. A static cache counts on the device: there the counts are
read at the cache's first use and with every pass of several tokens; a decoding step and compiled code wait for nothing,
and what `unseen` finds makes the activations NaN (see "not finite" in `gate`).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
)

from sae_unlearn.backbone.call_arguments import knows_length
from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.gate import Series, State


Owner = tuple[int, str] | tuple[int, str, str]  # layer, adapter name, and the guardrail of that name


MOST_LATER = 64
"""Numbers of Python take ten times the memory of a tensor's."""


class Reader(Protocol):
    """Who looks at a history later."""

    def keep(self, history: "GateHistory") -> None:
        """Its request is over, and it is about to be emptied for another."""


class Readers(list[Reader]):
    """The readers of one history, and not of its copies, which are other requests."""

    def __deepcopy__(self, memo: Any) -> "Readers":
        return Readers()


class GateHistory:
    """What the two kinds of history share. The state is `keys [batch, 1, tokens, STATE_SIZE]`; `values` are empty.

    Attributes:
        whole: whether the host knows that no mask hid a token while it was current; see `shown`.
    """

    owner: Owner
    whole = True
    is_initialized: bool
    readers: Readers
    keys: Tensor
    update: Callable[..., Any]
    get_seq_length: Callable[..., Any]

    def last(self) -> Tensor | None:
        """`[batch, STATE_SIZE]` after the last token, or None if there is none yet."""
        raise NotImplementedError

    def series(self) -> Series | None:
        """The sums of all tokens so far."""
        raise NotImplementedError

    def seen(self) -> int | Tensor:
        """Tokens that went by: an int, or a 0-d tensor where only the device knows."""
        return self.get_seq_length()

    def append(self, state: Tensor, whole: bool = True) -> None:
        """Add the states of a forward pass, `[batch, seq, STATE_SIZE]`; `whole` as above, of this pass."""
        if not whole:
            self.whole = False
        keys = state[:, None]
        self.update(keys, keys[..., :0])

    def end(self) -> None:
        """To be called before the history is emptied."""
        for reader in self.readers:
            reader.keep(self)
        self.readers.clear()
        self.whole = True


class DynamicGateHistory(GateHistory, DynamicLayer):
    """History that grows with the sequence.

    States that were worked out on the host stay there until somebody reads `keys`, or there are `MOST_LATER` tokens of
    them: a decoding step looks at the last one only, and has it as it needs it.
    """

    def __init__(self, owner: Owner) -> None:
        self._later: list[list[State]] = []  # by token and row, after those that are in `_keys`
        self._hidden: tuple[Tensor, Tensor] | None = None
        super().__init__()
        self.owner, self.readers = owner, Readers()

    @property
    def keys(self) -> Tensor:
        """`[batch, 1, tokens, STATE_SIZE]`; None before the first token, as in every layer of a cache."""
        self._settle()
        return self._keys

    @keys.setter
    def keys(self, keys: Tensor) -> None:
        self._keys, self._later, self._hidden = keys, [], None

    def get_seq_length(self) -> int:
        """Tokens that went by."""
        stored = 0 if not self.is_initialized or self._keys.numel() == 0 else self._keys.shape[-2]
        return stored + len(self._later)

    def append_rows(self, rows: list[State]) -> None:
        """Add the states of a single token, one for each row."""
        if not self.is_initialized:
            whole = all(row.kept for row in rows)
            self.append(_as_tensor(rows, torch.device("cpu"))[:, None], whole)
            return
        if len(self._later) == MOST_LATER:
            self._settle()
        self._later.append(rows)
        if not all(row.kept for row in rows):
            self.whole, self._hidden = False, None

    def _settle(self) -> None:
        """Put the states that lie on the host into the tensor."""
        if self._later:
            states, self._later = self._later, []
            self.append(_as_tensor(states, self._keys.device).transpose(0, 1))

    def hidden(self) -> tuple[Tensor, Tensor] | None:
        """Row and place of each token that was hidden while it was current; None if there is none. Waits for the
        device where neither is known."""
        if not self.whole and self._hidden is None:
            rows, places = (State.of(self.keys[:, 0]).kept == 0).nonzero(as_tuple=True)
            self.whole, self._hidden = len(rows) == 0, (rows, places)
        return None if self.whole else self._hidden

    def last_rows(self) -> list[State] | None:
        """`last` as numbers."""
        if self._later:
            return self._later[-1]
        last = self.last()
        return None if last is None else [State(*row) for row in last.tolist()]

    def reset(self) -> None:
        self.end()
        super().reset()

    def last(self) -> Tensor | None:
        return self.keys[:, 0, -1] if self.get_seq_length() > 0 else None

    def series(self) -> Series | None:
        if self.get_seq_length() == 0:
            return None
        states = State.of(self.keys[:, 0])
        return Series(states.hits, states.tokens)


def _as_tensor(states: Any, device: torch.device) -> Tensor:
    return torch.tensor(states, dtype=torch.float32, device=device)


class StaticGateHistory(GateHistory, StaticLayer):
    """History of fixed size, for caches whose shape must not change (`torch.compile`, CUDA graphs).

    Args:
        sliding: the cache's length is that of a sliding layer, which counts on the host; so the history does, too.
    """

    def __init__(self, owner: Owner, max_cache_len: int, sliding: bool = False) -> None:
        super().__init__(max_cache_len=max_cache_len)
        self.owner, self.readers = owner, Readers()
        self.counted = 0 if sliding else None

    def seen(self) -> int | Tensor:
        return super().seen() if self.counted is None else self.counted

    def append(self, state: Tensor, whole: bool = True) -> None:
        super().append(state, whole)
        if self.counted is not None:
            self.counted += state.shape[1]

    def reset(self) -> None:
        self.end()
        super().reset()
        if self.counted is not None:
            self.counted = 0

    def last(self) -> Tensor | None:
        if not self.is_initialized:
            return None
        index = (self.cumulative_length - 1).clamp(min=0).reshape(1)
        return self.keys[:, 0].index_select(1, index)[:, 0]  # all zeros, the state of an empty row, if none is written

    def series(self) -> Series | None:
        if not self.is_initialized:
            return None
        written = torch.arange(self.max_cache_len, device=self.keys.device) < self.cumulative_length
        states = State.of(self.keys[:, 0])
        return Series(states.hits, states.tokens.masked_fill(~written, torch.inf))


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
