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

    stamp_t = seed + sum_{s<=t} id_s f_s   mod 2**64,  f a fixed odd number for each position
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


BEGINNING = -2
"""Slot before a pass of a row that begins in it."""

PADDING = -1
"""Slot of a padding token. What is written there is never read."""


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
        states: `[slots + 2, size]` float32. The last two are of `BEGINNING` (always zeros) and of `PADDING`.
        stamps: `[slots + 2]` int64, or None.
        ids: `[slots + 2]` int64, -1 in empty slots, or None.
    """

    def __init__(
        self, slots: int, size: int, longest: int = 0, ids: bool = False, device: torch.device | str | None = None
    ) -> None:
        self.states = torch.zeros(slots + 2, size, device=device)
        self.stamps = torch.zeros(slots + 2, dtype=torch.int64, device=device) if longest else None
        self.ids = torch.full((slots + 2,), -1, device=device) if ids else None
        generator = torch.Generator().manual_seed(0x5AE)
        low, high = -(2**63), 2**63 - 1
        self._factors = (torch.randint(low, high, (longest,), generator=generator) | 1).to(device)

    def clear(self) -> None:
        """Forget all states, as after the cache itself was dropped."""
        self.states.zero_()
        if self.stamps is not None:
            self.stamps.zero_()
        if self.ids is not None:
            self.ids.fill_(-1)

    def copy_blocks(self, pairs: Iterable[tuple[int, int]], block_size: int) -> None:
        """Copy states with cache blocks: `(from, to)` for each, in blocks of `block_size` slots."""
        for source, target in pairs:
            for table in (self.states, self.stamps, self.ids):
                if table is not None:
                    where = slice(source * block_size, (source + 1) * block_size)
                    table[target * block_size : (target + 1) * block_size] = table[where]

    def summands(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return what each token adds to its row's stamp, `[T]` int64."""
        return ids * self._factors[positions]

    def stamp_of(self, ids: Tensor, seed: int = 0) -> int:
        """Return the stamp after the tokens `ids [n]` of a row."""
        ids = ids.to(self._factors.device)
        return int(self.summands(ids, torch.arange(len(ids), device=ids.device)).sum() + seed)
