"""The statistic message by message, or paragraph by paragraph, so that one does not dilute another.

A chat template puts special tokens between messages (`tokens.boundary_ids`). A message is what stands between two of
them: a system prompt, a question, the reply so far. If the fit asked for paragraphs, tokens that hold a blank line are
boundaries, too, and a paragraph is a message in all that follows. With the running sums `H_t` and `N_t` of `gate`,
`m = min_tokens`, and `b(t)` the last boundary before token `t` (`H_b = N_b = 0` if there is none):

    R_t = (H_t - H_b(t)) / max(N_t - N_b(t), m)                   of the message that t belongs to
    S_t = max(H_t / max(N_t, m), R_t, max_{boundaries s <= t} R_s)

and with `statistic="windowed"`

    R_t = message_weight z(H_t - H_b(t), N_t - N_b(t))

and its own `S_t` in the place of the first term,

so the row's statistic is the largest of its messages' and of the row as a whole, the first term. A boundary belongs to
the message that it ends. Since the whole row is among them, boundaries can only make the gate fire more: to scatter
such tokens through a text does not hide it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.windowed import message_part


# The fields that a state has beyond those of `gate`, after them in the last dimension.
MESSAGES_SIZE = 3  # H and N at the last boundary, and the largest R of the messages that have ended


class Messages(NamedTuple):
    """The statistic with messages.

    Attributes:
        value (Tensor): `S`, `[batch, seq]`.
        state (Tensor): `[batch, seq, MESSAGES_SIZE]`.
    """

    value: Tensor
    state: Tensor


def by_message(
    whole: Tensor,
    hits: Tensor,
    tokens: Tensor,
    ends: Tensor,
    share: Callable[[Tensor, Tensor], Tensor],
    previous: Tensor | None,
) -> Messages:
    """Return the statistic of one forward pass.

    Args:
        whole (Tensor): The statistic of the row as a whole, `[batch, seq]`.
        hits, tokens (Tensor): `H` and `N`, `[batch, seq]`.
        ends (Tensor): `[batch, seq]` bool, the boundaries.
        share (Callable[[Tensor, Tensor], Tensor]): `R` of a message's `H` and `N`.
        previous (Tensor or None): `[batch, MESSAGES_SIZE]` after the row's last earlier token; None at a row's
            beginning.
    """
    if previous is None:
        previous = hits.new_zeros(hits.shape[0], MESSAGES_SIZE)
    first_hits, first_tokens, earlier = previous[:, None].unbind(dim=-1)
    begun_hits, begun_tokens = (_at_latest(sums, ends, at) for sums, at in ((hits, first_hits), (tokens, first_tokens)))
    found = share(hits - _one_before(begun_hits, first_hits), tokens - _one_before(begun_tokens, first_tokens))
    ended = _largest(found, ends, earlier)
    value = torch.maximum(torch.maximum(whole, found), ended)
    return Messages(value, torch.stack([begun_hits, begun_tokens, ended], dim=-1))


def share_of(config: SAEGuardrailConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `R` of a message's sums."""
    given = config.statistic_kwargs
    if config.statistic == "windowed":
        return lambda hits, tokens: message_part(hits, tokens, given)
    return lambda hits, tokens: hits / tokens.clamp(min=given.min_tokens)


def _at_latest(values: Tensor, ends: Tensor, before: Tensor) -> Tensor:
    """Return the value at the last boundary up to each token, `before` if there is none."""
    if values.shape[1] == 1:
        return torch.where(ends, values, before)
    place = torch.where(ends, torch.arange(values.shape[1], device=values.device), -1).cummax(dim=1).values
    return torch.where(place >= 0, values.gather(1, place.clamp(min=0)), before)


def _largest(values: Tensor, ends: Tensor, before: Tensor) -> Tensor:
    """Return the largest value at a boundary up to each token, `before` included."""
    values = torch.where(ends, torch.maximum(values, before), before)  # NaN stays
    return values if values.shape[1] == 1 else values.cummax(dim=1).values


def _one_before(values: Tensor, first: Tensor) -> Tensor:
    return torch.cat([first, values[:, :-1]], dim=1)
