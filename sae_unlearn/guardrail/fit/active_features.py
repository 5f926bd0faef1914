"""Active features at each token of some rows, and windows over the tokens.

A token of an SAE with `L0` active features takes `4 L0 + 8` bytes: 168 with `L0 = 40`, so a million tokens take 168 MB.
Neither activation values nor the residual stream nor text is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ActiveFeatures(NamedTuple):
    """Active features of the content tokens of some rows, the rows one after another.

    Attributes:
        lengths (Tensor): Tokens of each row, `[rows]` int64.
        starts (Tensor): Start of each token's features, `[tokens + 1]` int64.
        features (Tensor): Ids of the active features, token by token, `[starts[-1]]` int32.
    """

    lengths: Tensor
    starts: Tensor
    features: Tensor

    @classmethod
    def of(cls, active: Sequence[Tensor]) -> "ActiveFeatures":
        """Return the active features of rows, each `[tokens, d_sae]` bool."""
        joined = torch.cat([*active])
        counts = joined.sum(dim=1).cumsum(0)
        return cls(
            torch.tensor([len(row) for row in active], dtype=torch.long),
            torch.cat([counts.new_zeros(1), counts]),
            joined.nonzero()[:, 1].int(),
        )

    @classmethod
    def joined(cls, parts: Sequence["ActiveFeatures"]) -> "ActiveFeatures":
        """Return the rows of all parts, one part after another."""
        counts = torch.cat([part.starts.diff() for part in parts]).cumsum(0)
        return cls(
            torch.cat([part.lengths for part in parts]),
            torch.cat([counts.new_zeros(1), counts]),
            torch.cat([part.features for part in parts]),
        )

    def rows(self, chosen: Tensor) -> "ActiveFeatures":
        """Return the rows `chosen [n]` int64, in that order."""
        ends = self.lengths.cumsum(0)
        tokens = ranges(ends[chosen] - self.lengths[chosen], self.lengths[chosen])
        counts = self.starts.diff()[tokens]
        return ActiveFeatures(
            self.lengths[chosen],
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            self.features[ranges(self.starts[tokens], counts)],
        )

    def only(self, kept: Tensor) -> "ActiveFeatures":
        """Return only the features `kept [n]` int64, which must be distinct, renumbered from 0 in that order."""
        numbers = torch.full((self.width(kept),), -1, dtype=torch.int32)
        numbers[kept] = torch.arange(len(kept), dtype=torch.int32)
        found = numbers[self.features]
        counts = torch.cat([torch.zeros(1, dtype=torch.long), (found >= 0).cumsum(0)])
        return ActiveFeatures(self.lengths, counts[self.starts], found[found >= 0])

    def width(self, kept: Tensor) -> int:
        """Return a number of features that covers all ids of the rows and of `kept`."""
        return 1 + max([int(ids.max()) for ids in (self.features, kept) if len(ids)], default=0)

    def scores(self, weights: Tensor, bias: float = 0.0) -> Tensor:
        """Return scores `[tokens]`: `bias` plus the sum of `weights [d_sae]` over a token's active features."""
        return bags(self.features, self.starts, weights) + bias

    def split(self, values: Tensor) -> list[Tensor]:
        """Return values of the tokens, `[tokens, ...]`, row by row."""
        return list(values.split(self.lengths.tolist()))


def ranges(starts: Tensor, counts: Tensor) -> Tensor:
    """Return `starts_i, starts_i + 1, ..., starts_i + counts_i - 1` for each `i`, joined; int64."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total) + (starts - (ends - counts)).repeat_interleave(counts, output_size=total)


def bags(ids: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """Return `[n]`: the sum of `values[ids]` from `starts_i` to `starts_{i + 1}`, with `starts [n + 1]`."""
    if not len(ids):
        return values.new_zeros(len(starts) - 1)
    offsets = starts[:-1].to(ids.dtype)
    return torch.nn.functional.embedding_bag(ids, values[:, None], offsets, mode="sum")[:, 0]


def windows_of(lengths: Tensor, size: int, step: int) -> tuple[Tensor, Tensor]:
    """Return first token and end `[windows]` int64 of windows of `size` tokens, one every `step` tokens.

    A row of at most `size` tokens is one window; the rest at a longer row's end is in none. A row without tokens has no
    window.
    """
    first = lengths.cumsum(0) - lengths
    number = torch.where(lengths > size, (lengths - size).div(step, rounding_mode="floor") + 1, (lengths > 0).long())
    row = torch.arange(len(lengths)).repeat_interleave(number)
    starts = first[row] + step * ranges(torch.zeros_like(number), number)
    return starts, torch.minimum(starts + size, (first + lengths)[row])
