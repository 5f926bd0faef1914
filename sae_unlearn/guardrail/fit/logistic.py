"""L2 logistic regression by L-BFGS on means over windows of tokens."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.guardrail.fit.active_features import ActiveFeatures, bags, windows_of


SIZES = ((16, 8), (64, 32))
"""Sizes and steps of the windows, in tokens."""
L2 = 1e-3
ITERATIONS = 200
_BLOCK = 2**24  # numbers in memory at a time


class Windows(NamedTuple):
    """Windows of the topic's rows and of other rows, which are joined in this order.

    Attributes:
        starts (Tensor): First token of each, `[windows]` int64.
        ends (Tensor): End of each, `[windows]` int64.
        signs (Tensor): 1 for the topic and -1 for other text, `[windows]`.
        weights (Tensor): Weight of each, `[windows]`. They sum to 1, with equal sums for each class and size.
    """

    starts: Tensor
    ends: Tensor
    signs: Tensor
    weights: Tensor

    @classmethod
    def of(cls, topic: Tensor, other: Tensor, sizes: tuple[tuple[int, int], ...] = SIZES) -> "Windows":
        """Return the windows of rows with the lengths `topic [rows]` and `other [rows]` in tokens."""
        parts = []
        for size, step in sizes:
            for lengths, first, sign in ((topic, 0, 1.0), (other, int(topic.sum()), -1.0)):
                starts, ends = windows_of(lengths, size, step)
                share = torch.full((len(starts),), 1 / (2 * len(sizes) * max(len(starts), 1)))
                parts.append((starts + first, ends + first, torch.full_like(share, sign), share))
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of each window, `[windows, ...]`, of values of the tokens, `[tokens, ...]`."""
        sums = torch.cat([values.new_zeros(1, *values.shape[1:]), values]).double().cumsum(0)
        sizes = (self.ends - self.starts).view(-1, *[1] * (values.dim() - 1))
        return ((sums[self.ends] - sums[self.starts]) / sizes).to(values.dtype)

    def spread(self, values: Tensor, tokens: int) -> Tensor:
        """Return the transpose of `means`: for each token the sum of `values_i / size_i` of its windows."""
        each = (values / (self.ends - self.starts)).double()
        steps = each.new_zeros(tokens + 1).index_add_(0, self.starts, each).index_add_(0, self.ends, -each)
        return steps.cumsum(0)[:-1].to(values.dtype)


def logistic(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor], width: int, windows: Windows, l2: float
) -> tuple[Tensor, float]:
    """Return the weights `w [width]` and the bias `b` of an L2 logistic regression.

    With `y` the signs, `c` the weights and `z = X w + b`, they minimize by L-BFGS from 0

        sum_i c_i log(1 + exp(-y_i z_i)) + l2 / 2 |w|^2

    The bias is not penalized.

    Args:
        forward (Callable[[Tensor], Tensor]): `w -> X w`.
        backward (Callable[[Tensor], Tensor]): `g -> X^T g`.
    """
    point = torch.zeros(width + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [point], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )
    signs, counts = windows.signs, windows.weights

    @torch.no_grad()
    def loss() -> Tensor:
        w, b = point[:-1], point[-1]
        agreement = signs * (forward(w) + b)
        slope = -counts * signs * torch.sigmoid(-agreement)
        point.grad = torch.cat([backward(slope) + l2 * w, slope.sum()[None]])
        return (counts * torch.nn.functional.softplus(-agreement)).sum() + l2 / 2 * w.square().sum()

    optimizer.step(loss)
    found = point.detach()
    return found[:-1], float(found[-1])


def logistic_of_shares(active: ActiveFeatures, windows: Windows, width: int, l2: float = L2) -> tuple[Tensor, float]:
    """Return `logistic` of the share of a window's tokens at which each of `width` features is active."""
    tokens = len(active.starts) - 1
    by_feature = active.features.argsort(stable=True)
    token_of = torch.arange(tokens, dtype=torch.int32).repeat_interleave(active.starts.diff())[by_feature]
    counts = torch.bincount(active.features, minlength=width)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return logistic(
        lambda w: windows.means(active.scores(w)),
        lambda g: bags(token_of, starts, windows.spread(g, tokens)),
        width,
        windows,
        l2,
    )


def deviations_of_shares(active: ActiveFeatures, windows: Windows, width: int) -> Tensor:
    """Return `[width]`: for each feature the standard deviation over windows of its share of tokens."""
    sums, squares = torch.zeros(2, width, dtype=torch.float64)
    number = max(1, _BLOCK // width)
    for starts, ends in zip(windows.starts.split(number), windows.ends.split(number), strict=True):
        counts = active.starts[ends] - active.starts[starts]
        window = torch.arange(len(starts)).repeat_interleave(counts)
        first = (active.starts[starts] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        entries = active.features[torch.arange(int(counts.sum())) + first].long()
        shares = (1 / (ends - starts)).repeat_interleave(counts)
        found = torch.zeros(len(starts) * width).index_add_(0, window * width + entries, shares).view(-1, width)
        sums += found.sum(dim=0)
        squares += found.square().sum(dim=0)
    n = len(windows.starts)
    return (squares / n - (sums / n).square()).clamp(min=0).sqrt().float()
