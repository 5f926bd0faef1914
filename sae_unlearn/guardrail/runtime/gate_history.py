"""Histories of the gate's states: layers of a key-value cache with a state for each token.

transformers reorders them with the beams, crops them with rejected drafts, and repeats, selects, copies and resets
them. An entry costs `4 * STATE_SIZE` bytes per token and guardrail.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer

from sae_unlearn.guardrail.gate.decision import State


Owner = tuple[int, str] | tuple[int, str, str]  # layer, adapter name, and the identity of the guardrail


MOST_LATER = 64
"""Tokens whose states are kept as Python numbers, which take ten times the memory of a tensor's."""


class Reader(Protocol):
    """Reader of a history at a later time."""

    def keep(self, history: "GateHistory") -> None:
        """Keep the history's last state: its request is over, and it will be emptied for another."""


class Readers(list[Reader]):
    """The readers of one history. Its copies, which are other requests, have none of them."""

    def __deepcopy__(self, memo: Any) -> "Readers":
        return Readers()


class GateHistory:
    """Common part of the two kinds of history.

    The state is `keys [batch, 1, tokens, STATE_SIZE]`; `values` are empty.

    Attributes:
        whole (bool): The host knows that no mask hid a token while it was current, see `shown`.
    """

    owner: Owner
    whole = True
    is_initialized: bool
    readers: Readers
    keys: Tensor
    update: Callable[..., Any]
    get_seq_length: Callable[..., Any]

    def last(self) -> Tensor | None:
        """Return `[batch, STATE_SIZE]` after the last token, or None before the first."""
        raise NotImplementedError

    def seen(self) -> int | Tensor:
        """Return the number of tokens: an int, or a 0-d tensor if only the device knows."""
        return self.get_seq_length()

    def append(self, state: Tensor, whole: bool = True) -> None:
        """Add the states of a forward pass, `[batch, seq, STATE_SIZE]`. `whole` is as above, for this pass."""
        if not whole:
            self.whole = False
        keys = state[:, None]
        self.update(keys, keys[..., :0])

    def end(self) -> None:
        """Tell the readers that the history will be emptied. Called before that."""
        for reader in self.readers:
            reader.keep(self)
        self.readers.clear()
        self.whole = True


class DynamicGateHistory(GateHistory, DynamicLayer):
    """History that grows with the sequence.

    States that were computed on the host stay there until `keys` is read, or until there are `MOST_LATER` tokens of
    them. A decoding step reads only the last one, in the form that it needs.
    """

    def __init__(self, owner: Owner) -> None:
        self._later: list[list[State]] = []  # by token and row, after those in `_keys`
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
        """Return the number of tokens."""
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
        """Move the states on the host into the tensor."""
        if self._later:
            states, self._later = self._later, []
            self.append(_as_tensor(states, self._keys.device).transpose(0, 1))

    def hidden(self) -> tuple[Tensor, Tensor] | None:
        """Return row and place of each token that was hidden while it was current, or None.

        It waits for the device if neither is known.
        """
        if not self.whole and self._hidden is None:
            rows, places = (State.of(self.keys[:, 0]).kept == 0).nonzero(as_tuple=True)
            self.whole, self._hidden = len(rows) == 0, (rows, places)
        return None if self.whole else self._hidden

    def last_rows(self) -> list[State] | None:
        """Return `last` as numbers."""
        if self._later:
            return self._later[-1]
        last = self.last()
        return None if last is None else [State(*row) for row in last.tolist()]

    def reset(self) -> None:
        self.end()
        super().reset()

    def last(self) -> Tensor | None:
        return self.keys[:, 0, -1] if self.get_seq_length() > 0 else None


def _as_tensor(states: Any, device: torch.device) -> Tensor:
    return torch.tensor(states, dtype=torch.float32, device=device)


class StaticGateHistory(GateHistory, StaticLayer):
    """History of fixed size, for caches whose shape must not change (`torch.compile`, CUDA graphs).

    Args:
        owner (Owner): Layer and name of the guardrail.
        max_cache_len (int): Number of tokens.
        sliding (bool, *optional*, defaults to False): The cache's length is that of a sliding layer, which counts on
            the host, and so does the history.
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
