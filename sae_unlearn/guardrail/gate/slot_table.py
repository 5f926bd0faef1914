"""The gate's state of every token in a paged key-value cache, at the token's own slot.

An engine with a paged cache gives each token a slot, at which all layers keep its key and value. A table that is
indexed by the same slots follows the cache for free: rows that move in the batch, prompts in chunks, cached prefixes,
preempted rows, rejected drafts, forks and aborts need no bookkeeping. Before a pass, a row's state is that of the slot
of its last earlier token; after the pass, each token's state is written to the token's slot.

**Unseen tokens.** The column `kept` of a state holds the number of the token in its row, counted from 1. If the slot
before a pass does not hold the number of tokens that the engine has computed, the guardrail has not seen them: the row
is *lost*, its state becomes NaN, and it fires.

**Stamps.** A second table has the tokens of each slot's state as a number, so that a cached prefix can be compared with
the ids of the request that uses it:

    stamp_t = C stamp_{t-1} + id_t   mod 2**64,  stamp of no tokens: the seed;  C a fixed odd number

With `p` tokens of the row up to and including `t`, `u_t = stamp_t C^-p` is a sum, `u_t = u_{t-1} + id_t C^-p`, which is
how a pass with several tokens of a row computes it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


BEGINNING = -2
"""Slot before a pass of a row that begins in it."""

PADDING = -1
"""Slot of a padding token. What is written there is never read."""

FACTOR = 0x5AE5_1075_7AB1_E0DD
"""`C` of the stamps: odd, so that it has an inverse."""


class CacheSlots(NamedTuple):
    """Slots of the states of a pass of `T` tokens in `R` rows.

    Attributes:
        of_token (Tensor): `[T]` int64, the cache slot of each token; `PADDING` for padding.
        before (Tensor): `[R]` int64, the slot of each row's last earlier token; `BEGINNING` if it has none.
        computed (Tensor): `[R]` int64, tokens of each row before this pass.
        shared (bool): Another row may write a slot of `before` in this pass. This happens if two requests begin with
            the same text at once. The host knows it; if True, it waits for the device.
        seeds (Tensor or None): `[R]` int64, added to the stamps of rows that begin in this pass, and 0 for all others.
            None: all 0.
    """

    of_token: Tensor
    before: Tensor
    computed: Tensor
    shared: bool = False
    seeds: Tensor | None = None


class SlotTable:
    """The states of one guardrail, and optionally stamps and token ids, by slot.

    Args:
        slots (int): Number of slots: blocks of the cache times tokens per block.
        size (int): Values in a state, see `packed.state_size`.
        longest (int, *optional*, defaults to 0): Positions that a row can have. 0: no stamps.
        ids (bool, *optional*, defaults to False): Keep token ids, which `action="refuse"` needs.
        device (torch.device, *optional*): Where the tables lie.

    Attributes:
        entries: `[slots + 2, ...]` float32, what is read and written at a slot at once: the state and, in the last two
            columns, the bits of the stamp. The last two slots are `BEGINNING` (always zeros) and `PADDING`.
        states: `[slots + 2, size]` float32, a view of `entries`.
        stamps: `[slots + 2]` int64, a view of `entries`, or None.
        ids: `[slots + 2]` int64, -1 in empty slots, or None.
    """

    def __init__(
        self, slots: int, size: int, longest: int = 0, ids: bool = False, device: torch.device | str | None = None
    ) -> None:
        self.size = size
        width = size + size % 2 + 2 if longest else size  # a stamp is 8 bytes at a multiple of 8
        self.entries = torch.zeros(slots + 2, width, device=device)
        self.states = self.entries[:, :size]
        self.stamps = self.stamps_of(self.entries) if longest else None
        self.ids = torch.full((slots + 2,), -1, device=device) if ids else None
        inverse = pow(FACTOR, -1, 2**64)
        self._powers, self._inverse_powers = (_powers(base, longest).to(device) for base in (FACTOR, inverse))

    def clear(self) -> None:
        """Forget all states, as after the cache itself was dropped."""
        self.entries.zero_()
        if self.ids is not None:
            self.ids.fill_(-1)

    def copy_blocks(self, pairs: Iterable[tuple[int, int]], block_size: int) -> None:
        """Copy states with cache blocks: `(from, to)` for each, in blocks of `block_size` slots."""
        for source, target in pairs:
            for table in (self.entries, self.ids):
                if table is not None:
                    where = slice(source * block_size, (source + 1) * block_size)
                    table[target * block_size : (target + 1) * block_size] = table[where]

    @staticmethod
    def stamps_of(entries: Tensor) -> Tensor:
        """Return the stamps `[n]` int64 of some `entries [n, ...]`, a view."""
        return entries.view(torch.int64)[:, -1]

    def columns(self, stamps: Tensor) -> list[Tensor]:
        """Return what follows a state in an entry, for `stamps [n]`: float32 columns `[n]`."""
        bits = stamps[:, None].view(torch.float32).unbind(dim=1)
        return [bits[0], *bits] if self.size % 2 else [*bits]

    def next_stamps(self, stamps: Tensor, ids: Tensor) -> Tensor:
        """Return the stamps after one more token each, `[R]`."""
        return torch.add(ids, stamps, alpha=FACTOR)

    def summands(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """Return what each token adds to its row's `u`, `[T]` int64. `numbers [T]`: from 1 in each row."""
        return ids * self._inverse_powers[numbers]

    def to_sum(self, stamps: Tensor, numbers: Tensor) -> Tensor:
        """Return `u` of stamps after `numbers` tokens."""
        return stamps * self._inverse_powers[numbers]

    def from_sum(self, sums: Tensor, numbers: Tensor) -> Tensor:
        """Return the stamps of `u` after `numbers` tokens."""
        return sums * self._powers[numbers]

    def stamp_of(self, ids: Tensor, seed: int = 0) -> int:
        """Return the stamp after the tokens `ids [n]` of a row."""
        ids = ids.to(self._powers.device)
        numbers = torch.arange(1, len(ids) + 1, device=ids.device)
        return int((self.summands(ids, numbers).sum() + seed) * self._powers[len(ids)])


def _powers(base: int, longest: int) -> Tensor:
    """Return `base ** p mod 2**64` for `p` from 0 to `longest`, as int64."""
    return torch.cat([torch.ones(1, dtype=torch.int64), torch.full((longest,), _signed(base)).cumprod(0)])


def _signed(value: int) -> int:
    """Return the int64 of the same bits as a whole number below 2**64."""
    return value - 2**64 if value >= 2**63 else value
