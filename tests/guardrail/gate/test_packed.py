"""The gate on packed rows against `gate.decision` on each row alone: the same bits, whatever is packed beside a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import planted_config

from sae_unlearn import GuardrailError
from sae_unlearn.guardrail.gate import decision as gate
from sae_unlearn.guardrail.gate import packed


TURN = 7
THRESHOLDS = {"ratio": (0.25, 0.375, 1.5), "windowed": (0.5, 0.9, 2.0)}
QUARTERS = st.integers(0, 16).map(lambda quarters: quarters / 4)


@st.composite
def configs(draw):
    statistic = draw(st.sampled_from(sorted(THRESHOLDS)))
    windowed = statistic == "windowed"
    sticky = windowed or draw(st.booleans())
    messages = sticky and draw(st.booleans())
    return planted_config(
        statistic=statistic,
        threshold=draw(st.sampled_from(THRESHOLDS[statistic])),
        sticky=sticky,
        gate_scope=draw(st.sampled_from(["prefix", "sequence"])),
        min_tokens=draw(st.integers(1, 6)),
        drift=draw(st.sampled_from([0.25, 0.4375])),
        feature_evidence=[4.0] * (9 if windowed else 6),
        boundary_ids=[TURN] if messages else None,
        message_weight=draw(st.sampled_from([1.0, 0.6])) if windowed and messages else 1.0,
    )


@st.composite
def one_row(draw, config):
    """Hot and counted tokens, ends of messages, and passes `(start, stop, boundary)`."""
    length = draw(st.integers(1, 24))

    def bits():
        return draw(st.lists(st.booleans(), min_size=length, max_size=length))

    counted = torch.tensor(bits()) | torch.tensor(bits())
    hot = torch.tensor(draw(st.lists(QUARTERS, min_size=length, max_size=length))) * torch.tensor(bits()) * counted
    if config.statistic == "windowed":  # whose scores may be negative
        hot = torch.where(counted, hot - 1.0, 0.0)
    if draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, length - 1))
        hot[at] = torch.nan if counted[at] else 0.0
    ends = (torch.tensor(bits()) & torch.tensor(bits())) if config.tokens.boundary_ids else None
    prompt = draw(st.integers(1, length))
    passes, at = [], 0
    while at < length:
        least = prompt if at == 0 and config.gate_scope == "sequence" else at + 1
        stop = draw(st.integers(least, length))
        passes.append((at, stop, 0 if config.gate_scope == "prefix" else max(prompt - 1 - at, 0)))
        at = stop
    return hot, counted, ends, passes


def alone(row, config):
    """Decision and states of a row by itself, pass by pass."""
    hot, counted, ends, passes = row
    fires, states = [], []
    for start, stop, boundary in passes:
        cut = [None if x is None else x[None, start:stop] for x in (hot, counted, ends)]
        before = states[-1][:, -1] if states else None
        decision = gate.decide(*cut[:2], config, before, boundary=boundary, ends=cut[2])
        fires.append(decision.fire)
        states.append(decision.state)
    return torch.cat(fires, dim=1)[0], torch.cat(states, dim=1)[0]


def in_company(rows, config, draw):
    """The same of all rows, with those of each pass packed at random, empty rows and padding among them."""
    size = packed.state_size(config)
    last = [torch.zeros(size) for _ in rows]
    todo = [list(row[3]) for row in rows]
    got = [[] for _ in rows]
    while any(todo):
        due = draw(st.permutations([i for i, passes in enumerate(todo) if passes]))
        due = due[: draw(st.integers(1, len(due)))]
        batch = [(i, todo[i].pop(0)) for i in due]
        empty, padding = draw(st.integers(0, 1)), draw(st.integers(0, 3))
        counts = [stop - start for _, (start, stop, _) in batch] + [0] * empty
        starts = torch.tensor([0, *counts]).cumsum(0)
        total = int(starts[-1])
        flat = [
            None if rows[0][k] is None else torch.cat([rows[i][k][start:stop] for i, (start, stop, _) in batch])
            for k in range(3)
        ]
        junk = torch.full((padding,), torch.nan)
        hot, counted = torch.cat([flat[0], junk]), torch.cat([flat[1], junk > 0])
        ends = None if flat[2] is None else torch.cat([flat[2], junk > 0])
        before = torch.stack([last[i] for i, _ in batch] + [torch.zeros(size)] * empty)
        boundary = starts[:-1] + torch.tensor([b for _, (_, _, b) in batch] + [0] * empty)
        one_each = total == len(batch) == len(hot) and not empty and draw(st.booleans())
        if one_each:
            decision = packed.decide_one_each(hot, counted, config, before, ends)
        else:
            of = packed.Rows.of(starts, total + padding)
            decision = packed.decide(hot, counted, config, of, before, boundary, ends)
        for (i, _), start, count in zip(batch, starts.tolist(), counts, strict=False):
            got[i].append((decision.fire[start : start + count], decision.state[start : start + count]))
            last[i] = got[i][-1][1][-1]
    return [(torch.cat([f for f, _ in parts]), torch.cat([s for _, s in parts])) for parts in got]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_packed_row_is_judged_as_it_is_alone(data):
    config = data.draw(configs())
    rows = data.draw(st.lists(one_row(config), min_size=1, max_size=5))
    for row, (fire, state) in zip(rows, in_company(rows, config, data.draw), strict=True):
        expected_fire, expected_state = alone(row, config)
        assert torch.equal(fire, expected_fire)
        torch.testing.assert_close(state, expected_state, rtol=0, atol=0, equal_nan=True)


def test_sums_stay_exact_in_a_long_list():
    count, rows = 2**12, 2**6
    values = torch.full((1, count * rows), 15.75)
    of = packed.Rows.of(torch.arange(rows + 1) * count, count * rows)
    sums = packed.running_sums(values, of, torch.full((1, rows), 0.25))
    assert torch.equal(sums.view(rows, count), (0.25 + 15.75 * torch.arange(1, count + 1)).expand(rows, count))


def test_the_largest_value_is_of_every_sign():
    values = torch.tensor([-2.0, -3.5, -torch.inf, 5.0, -1e-30, 0.0, torch.nan, 1.0])
    of = packed.Rows.of(torch.tensor([0, 3, 6, 8]), 8)
    before = torch.tensor([-torch.inf, -torch.inf, -7.0])
    expected = torch.tensor([-2.0, -2.0, -2.0, 5.0, 5.0, 5.0, torch.nan, torch.nan])
    torch.testing.assert_close(packed.running_max(values, of, before), expected, rtol=0, atol=0, equal_nan=True)


def test_what_needs_columns_is_refused_by_name():
    config = planted_config(counting="columns")
    with pytest.raises(GuardrailError, match="counting"):
        packed.check_packable(config)
    of = packed.Rows.of(torch.tensor([0, 2]), 2)
    with pytest.raises(GuardrailError, match="counting"):
        packed.decide(
            torch.zeros(2), torch.ones(2, dtype=torch.bool), config, of, torch.zeros(1, 6), torch.zeros(1).long()
        )
