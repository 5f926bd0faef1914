"""The paged cache of transformers' continuous batching (`generate_batch`): the slot of each token.

Read in transformers 5.16 to 5.24. A cache has a group of blocks for each kind of attention. One group is followed: that
of full attention if there is one, else the first. A sliding group keeps only the tokens in its window. The
last earlier token of a row is always among them.
"""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailUnsupported


_MODULE = "transformers.generation.continuous_batching.cache"


def is_paged(cache: Any) -> bool:
    """Return True for a `PagedAttentionCache`."""
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(cache, module.PagedAttentionCache)


class PagedLayout(NamedTuple):
    """Places of the tokens in one group of a paged cache.

    Attributes:
        number (int): Number of the group in the lists of a forward pass.
        kind (str): Its attention, as in `config.layer_types`.
        slots (int): Number of slots, with those for padding.
        page (int): Tokens in a block.
        stride (int): Distance between the first tokens of two blocks in transformers' indices. It is larger than a page
            since 5.18, where a block holds the pages of several layers.
        window (int or None): Tokens that the group keeps of each row; None for all.
        copier (Any): The object with the method `copies`, that copies blocks when a request is forked.
        copies (str): Name of that method, which takes the numbers of the source and of the target blocks.
    """

    number: int
    kind: str
    slots: int
    page: int
    stride: int
    window: int | None
    copier: Any
    copies: str

    @classmethod
    def of(cls, cache: Any) -> "PagedLayout":
        """Return the layout of a cache.

        Raises:
            GuardrailUnsupported: If this version of transformers keeps its blocks otherwise.
        """
        allocators = getattr(cache, "cache_allocators", None)
        managers = getattr(cache, "group_cache_managers", None)
        if allocators is not None:  # from 5.18
            kind = _followed(list(allocators))
            group = allocators[kind]
            slots = (group.num_blocks + 2 * group.blocks_per_sector) * group.tokens_per_page
            window = getattr(group, "sliding_window", None)
            index, page, stride = group.index, group.tokens_per_page, group.block_physical_stride
            return cls(index, kind, slots, page, stride, window, group, "copy_blocks")
        if managers is not None:
            kinds = [
                "sliding_attention" if hasattr(group, "sliding_window") else "full_attention" for group in managers
            ]
            kind = _followed(kinds)
            index, page = kinds.index(kind), cache.block_size
            window = getattr(managers[index], "sliding_window", None)
            return cls(index, kind, cache.cache_shape[0], page, page, window, cache, "copy_cache")
        raise GuardrailUnsupported(
            "generate_batch: expected the paged cache of transformers 5.16 to 5.24, got another. Use `generate`."
        )

    def slot_of(self, index: Tensor) -> Tensor:
        """Return slots, counted without gaps, from transformers' indices."""
        return index // self.stride * self.page + index % self.stride


def _followed(kinds: list[str]) -> str:
    return "full_attention" if "full_attention" in kinds else kinds[0]


class PagedIndex:
    """Slots of the tokens of one forward pass.

    Args:
        layout (PagedLayout): The followed group.
        given (dict[str, Any]): The arguments of the call, with `write_index` and others.
        starts (Tensor): `[R]` int64, index in the pass of each row's first token.
        computed (Tensor): `[R]` int64, tokens of each row before the pass.
    """

    def __init__(self, layout: PagedLayout, given: dict[str, Any], starts: Tensor, computed: Tensor) -> None:
        self._layout, self._starts, self._computed = layout, starts, computed
        table = given.get("block_table")
        self._blocks: Tensor | None = None if table is None else table[layout.number]
        self._write: Tensor = given["write_index"][layout.number]
        self._read: Tensor = given["read_index"][layout.number]
        keys = given["cu_seq_lens_k"]
        keys = keys[layout.kind] if isinstance(keys, dict) else keys  # a tensor up to 5.18 if there is one group
        self._keys = keys[: len(starts)].long()
        kept = computed if layout.window is None else computed.clamp(max=layout.window - 1)
        self._gone = computed - kept

    def at(self, row: Tensor, position: Tensor, nowhere: int) -> Tensor:
        """Return the slots of the tokens at `position` in the rows `row`, of one shape.

        Args:
            row, position (Tensor): int64. The positions end with the last token of the pass.
            nowhere (int): The slot of tokens before a row's first one, and of those that the cache no longer holds.
        """
        layout = self._layout
        if self._blocks is not None:
            found = self._blocks[row, position.clamp(min=0) // layout.page].long()
            pages = layout.stride // layout.page  # a block's number counts pages since 5.18
            found = found // pages * layout.page + position % layout.page
            return torch.where(position < 0, nowhere, found)
        offset = position - self._computed[row]
        new = self._write[(self._starts[row] + offset).clamp(min=0)]
        old = position - self._gone[row]
        if self._read.numel():
            earlier = self._read[(self._keys[row] + old).clamp(min=0, max=self._read.numel() - 1)]
            new = torch.where(offset >= 0, new, earlier)
        return torch.where((old < 0) | (position < 0), nowhere, layout.slot_of(new))
