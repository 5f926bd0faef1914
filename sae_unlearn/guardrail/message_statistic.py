"""The ratio of a conversation: message by message, so that one message does not dilute another.

A chat template puts special tokens between messages (`tokens.boundary_ids`). A message is what stands between two of
them: a system prompt, a question, the reply so far. With the running sums `H_t` and `N_t` of `gate`, `m = min_tokens`,
and `b(t)` the last boundary before token `t` (`H_b = N_b = 0` if there is none):

    R_t = (H_t - H_b(t)) / max(N_t - N_b(t), m)                   of the message that t belongs to
    S_t = max(H_t / max(N_t, m), R_t, max_{boundaries s <= t} R_s)

so the row's statistic is the largest of its messages' and of the row as a whole (the first term; the value of
`ratio_or_window` in its place). A boundary belongs to the message that it ends. Since the whole row is among them,
boundaries can only make the gate fire more: to scatter such tokens through a text does not hide it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


# The fields that a state has beyond those of `gate`, after them in the last dimension.
MESSAGES_SIZE = 3  # H and N at the last boundary, and the largest R of the messages that have ended


class Messages(NamedTuple):
    """The statistic with messages.

    Attributes:
        value: `S`, `[batch, seq]`.
        state: `[batch, seq, MESSAGES_SIZE]`.
    """

    value: Tensor
    state: Tensor


def by_message(
    whole: Tensor, hits: Tensor, tokens: Tensor, ends: Tensor, min_tokens: int, previous: Tensor | None
) -> Messages:
    """The statistic of one forward pass.

    Args:
        whole: the statistic of the row as a whole, at least `H / max(N, m)`, `[batch, seq]`.
        hits, tokens: `H` and `N`, `[batch, seq]`.
        ends: `[batch, seq]` bool, the boundaries.
        previous: `[batch, MESSAGES_SIZE]` after the row's last earlier token; None at a row's beginning.
    """
    if previous is None:
        previous = hits.new_zeros(hits.shape[0], MESSAGES_SIZE)
    first_hits, first_tokens, earlier = previous[:, None].unbind(dim=-1)
    begun_hits, begun_tokens = _latest(hits, ends, first_hits), _latest(tokens, ends, first_tokens)
    share = hits - _one_before(begun_hits, first_hits)
    share = share / (tokens - _one_before(begun_tokens, first_tokens)).clamp(min=min_tokens)
    ended = _latest(share, ends, earlier)
    value = torch.maximum(torch.maximum(whole, share), ended)
    return Messages(value, torch.stack([begun_hits, begun_tokens, ended], dim=-1))


def _latest(values: Tensor, ends: Tensor, before: Tensor) -> Tensor:
    """The largest value at a boundary up to each token, `before` included; of sums, which never fall, the latest."""
    values = torch.where(ends, torch.maximum(values, before), before)  # NaN stays
    return values if values.shape[1] == 1 else values.cummax(dim=1).values


def _one_before(values: Tensor, first: Tensor) -> Tensor:
    return torch.cat([first, values[:, :-1]], dim=1)
