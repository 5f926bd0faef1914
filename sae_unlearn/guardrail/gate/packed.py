"""The gate on packed rows: rows of tokens one after the other in a flat list, without padding.

Serving engines and padding-free training run the model on such lists. With `T` tokens in `R` rows,

    rows        the row of each token, the first token of each row
    before      [R, S] the state after each row's last earlier token, zeros at a row's beginning
    boundary    [R] index in the list from which a row's tokens are judged one by one; earlier ones share the decision
                taken at it. It is the row's first token for gate_scope="prefix"

give a decision and a state for every token: those of `gate.decision` on each row alone, bit for bit, however rows are
cut into passes and whatever the other rows hold. It has no loop over rows, and its shapes do not depend on the data.

Two scans do it. **Sums** along rows are differences of one cumulative sum over the list. Counts are whole numbers or
quarters and are added in float64, so a difference of sums is the exact sum. A NaN would spoil all later rows: NaN has
its own sum, and only tokens of its row become NaN. **Largest values** so far are one cumulative
maximum of whole numbers: a float32 as an integer of the same order, with the number of its row above it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.decision import STATE_SIZE, Decision, State
from sae_unlearn.guardrail.gate.decision import decide as decide_padded
from sae_unlearn.guardrail.gate.message_statistic import MESSAGES_SIZE, share_of
from sae_unlearn.guardrail.gate.windowed import CountTerms


class Rows(NamedTuple):
    """Which tokens of a flat list belong to which row.

    Attributes:
        of_token (Tensor): `[T]` int64, the row of each token; it does not fall.
        start (Tensor): `[R]` int64, the index of each row's first token; `T` for empty rows at the end.
        length (Tensor): `[R]` int64, the number of each row's tokens, which can be 0.
    """

    of_token: Tensor
    start: Tensor
    length: Tensor

    @classmethod
    def of(cls, starts: Tensor, total: int) -> "Rows":
        """Return the rows of a list.

        Args:
            starts (Tensor): `[R + 1]`, as `cu_seq_lens_q` or `query_start_loc`: the first token of each row, then the
                number of tokens. Tokens after it are padding, and belong to the last row.
            total (int): Number of tokens `T`, padding included.
        """
        starts = starts.long()
        at = torch.arange(total, device=starts.device)
        row = torch.searchsorted(starts[1:].contiguous(), at, right=True).clamp(max=len(starts) - 2)
        return cls(row, starts[:-1], starts[1:] - starts[:-1])

    @property
    def last(self) -> Tensor:
        """`[R]`: the index of each row's last token; that of the token before it for an empty row, at least 0."""
        return (self.start + self.length - 1).clamp(min=0)


def state_size(config: SAEGuardrailConfig) -> int:
    """Return the number `S` of values in a row's state."""
    return STATE_SIZE + (MESSAGES_SIZE if config.tokens.boundary_ids else 0)


def check_packable(config: SAEGuardrailConfig) -> None:
    """Raise unless packed rows can be judged as rows alone are.

    Raises:
        GuardrailError: If the config counts columns of a padded batch.
    """
    if config.tokens.counting != "content":
        raise GuardrailError(
            f"counting={config.tokens.counting!r}: expected 'content' for packed rows, which have no columns. Fit with "
            "counting='content'."
        )


def decide(
    hot: Tensor,
    counted: Tensor,
    config: SAEGuardrailConfig,
    rows: Rows,
    before: Tensor,
    boundary: Tensor,
    ends: Tensor | None = None,
    kept: Tensor | None = None,
) -> Decision:
    """Judge the tokens of one forward pass.

    Args:
        hot (Tensor): `[T]`, from `gate.decision.hits_of`.
        counted (Tensor): `[T]` bool.
        config (SAEGuardrailConfig): Names the statistic, its constants and the threshold.
        rows (Rows): The rows of the list.
        before (Tensor): `[R, S]` float32, the state after each row's last earlier token; zeros at its beginning.
        boundary (Tensor): `[R]` int64, index in the list.
        ends (Tensor, *optional*): `[T]` bool, the tokens that end a message, where the config names such.
        kept (Tensor, *optional*): `[T]` float32, what the state's column `kept` holds. Ones if it is not given.

    Returns:
        Decision: `fire [T]` and `state [T, S]`.

    Raises:
        GuardrailError: As from `check_packable`.
    """
    check_packable(config)
    earlier = before.unbind(dim=1)
    past = State(*earlier[:STATE_SIZE])
    hits, tokens = running_sums(torch.stack([hot, counted.to(hot.dtype)]), rows, torch.stack([past.hits, past.tokens]))
    value, lowest, peak = _value(hits, tokens, config, rows, past)
    messages: list[Tensor] = []
    if ends is not None:
        value, messages = _by_message(value, hits, tokens, ends, share_of(config), rows, earlier[STATE_SIZE:])
    peak = value if peak is None else peak
    loud = ~(value <= config.tau)  # NaN is
    at = torch.arange(len(hot), device=hot.device)
    own = at >= boundary[rows.of_token]
    fired_at = torch.where(loud, tokens, 0.0)
    if config.sticky:
        fired_at = torch.where(own, _first(own & loud, tokens, rows), fired_at)
        fired_earlier = past.fired_at[rows.of_token]
        fired_at = torch.where(fired_earlier > 0, fired_earlier, fired_at)
    fired = fired_at > 0
    shared = fired[boundary.clamp(max=len(hot) - 1)][rows.of_token]
    state = [*State(hits, tokens, lowest, peak, fired_at, torch.ones_like(hits) if kept is None else kept), *messages]
    return Decision(torch.where(own, fired, shared), torch.stack(state, dim=1))


def decide_one_each(
    hot: Tensor,
    counted: Tensor,
    config: SAEGuardrailConfig,
    before: Tensor,
    ends: Tensor | None = None,
    kept: Tensor | None = None,
    by_count: Tensor | None = None,
    also: Sequence[Tensor] = (),
) -> Decision:
    """Judge a pass that has one token of every row, as decoding does: `decide` without a scan.

    Args:
        hot, counted, ends (Tensor): `[R]`, as for `decide`.
        config, before: As for `decide`.
        kept (Tensor, *optional*): `[R]`, as for `decide`.
        by_count (Tensor, *optional*): From `ConfigTables.by_count`.
        also (Sequence[Tensor], *optional*): `[R]` float32 each, further columns of the state.
    """
    ends, kept = (None if values is None else values[:, None] for values in (ends, kept))
    columns = [values[:, None] for values in also]
    one = decide_padded(hot[:, None], counted[:, None], config, before, None, ends, kept, by_count, columns)
    return Decision(one.fire[:, 0], one.state[:, 0])


def running_sums(values: Tensor, rows: Rows, before: Tensor) -> Tensor:
    """Return `[K, T]` float32: the sums of `values [K, T]` along each row, added to `before [K, R]`.

    Exact for multiples of a quarter up to 2**24. NaN stays in its row.
    """
    spoilt = values.isnan()
    summed = torch.cat([values.masked_fill(spoilt, 0.0), spoilt.to(values.dtype)]).cumsum(dim=1, dtype=torch.float64)
    summed = torch.nn.functional.pad(summed, (1, 0))  # sums of all tokens before each one
    sums, spoils = (summed[:, 1:] - summed[:, rows.start][:, rows.of_token]).chunk(2)
    return (sums.float() + before[:, rows.of_token]).masked_fill(spoils > 0, torch.nan)


def running_max(values: Tensor, rows: Rows, before: Tensor) -> Tensor:
    """Return `[T]` float32: the maximum so far of `values [T]` and `before [R]`; NaN is the largest."""
    values = torch.where(values.isnan(), torch.nan, values)  # one NaN, which is positive
    ordered = _flipped(values.view(torch.int32))
    packed = (rows.of_token << 32) + (ordered.long() + 2**31)
    largest = (packed.cummax(dim=0).values & (2**32 - 1)) - 2**31
    return torch.maximum(_flipped(largest.int()).view(torch.float32), before[rows.of_token])


def _flipped(bits: Tensor) -> Tensor:
    """Return the bits of float32 as integers in the order of the numbers, and back."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _one_before(values: Tensor, rows: Rows, before: Tensor) -> Tensor:
    """Return `[T]`: the value one token earlier in the row; `before [R]` at its first token."""
    at = torch.arange(len(values), device=values.device)
    return torch.where(at == rows.start[rows.of_token], before[rows.of_token], values.roll(1))


def _value(
    hits: Tensor, tokens: Tensor, config: SAEGuardrailConfig, rows: Rows, past: State
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the current statistic, and the next `lowest` and, if it differs from that, `peak`; `[T]`."""
    given = config.statistic_kwargs
    if config.statistic == "ratio":
        return hits / tokens.clamp(min=given.min_tokens), past.lowest[rows.of_token], None
    terms = CountTerms.of(tokens, given)
    y = hits - terms.drift
    lowest = -running_max(-y, rows, -past.lowest)
    peak = running_max(y - lowest, rows, past.peak)
    return torch.maximum((hits - terms.mean) / terms.spread, given.sum_weight * peak), lowest, peak


def _first(where: Tensor, tokens: Tensor, rows: Rows) -> Tensor:
    """Return `[T]`: `N` at the first token of the row at which `where` is True, its minimum; 0 before it."""
    nothing = torch.full_like(rows.start, -torch.inf, dtype=tokens.dtype)
    first = -running_max(torch.where(where, -tokens, -torch.inf), rows, nothing)
    return first.masked_fill(first.isinf(), 0.0)


def _by_message(
    whole: Tensor,
    hits: Tensor,
    tokens: Tensor,
    ends: Tensor,
    share_of_message: Callable[[Tensor, Tensor], Tensor],
    rows: Rows,
    before: tuple[Tensor, ...] | list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Return the statistic with messages and its state, as `by_message`; `[T]` each."""
    at = torch.arange(len(ends), device=ends.device)
    latest = torch.where(ends, at, -1).cummax(dim=0).values  # the last boundary in the list up to each token
    ended_here = latest >= rows.start[rows.of_token]
    begun = [
        torch.where(ended_here, sums[latest.clamp(min=0)], first[rows.of_token])
        for sums, first in zip((hits, tokens), before[:2], strict=True)
    ]
    begun_hits, begun_tokens = (_one_before(b, rows, first) for b, first in zip(begun, before[:2], strict=True))
    share = share_of_message(hits - begun_hits, tokens - begun_tokens)
    ended = running_max(torch.where(ends, share, -torch.inf), rows, before[2])
    return torch.maximum(torch.maximum(whole, share), ended), [*begun, ended]
