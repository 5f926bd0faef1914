"""The histories of the gate's states: layers of a key-value cache that hold a state for each token.

They are reordered with the beams, cropped with rejected drafts, repeated, selected, copied and reset by transformers.
An entry costs `4 * STATE_SIZE` bytes per token and guardrail.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer

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
