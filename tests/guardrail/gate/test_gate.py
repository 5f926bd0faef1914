"""The gate against a slow transcription of its docstring in plain Python."""

import random

import pytest
import torch
from zoo import planted_config

from sae_unlearn.guardrail.config_parts.values import as_float32
from sae_unlearn.guardrail.gate.decision import STATE_SIZE, State, decide, row_statistic, statistic_of


DRIFT = 0.25  # which float32 holds exactly, as every other constant here
THRESHOLDS = {"ratio": 0.375, "windowed": 0.9}
STATISTICS, SCOPES = list(THRESHOLDS), ["sequence", "prefix"]


def config(statistic, scope, sticky=True, min_tokens=1):
    return planted_config(
        statistic=statistic,
        gate_scope=scope,
        sticky=sticky,
        min_tokens=min_tokens,
        drift=DRIFT,
        threshold=THRESHOLDS[statistic],
    )


def slow_values(hot, counted, cfg):
    """The statistic `S_t` after each token of one row, straight from the definitions."""
    H, N = [0], [0]
    for h, c in zip(hot, counted, strict=True):
        H.append(H[-1] + float(h))
        N.append(N[-1] + int(c))
    if cfg.statistic == "windowed":
        return slow_windowed(H, N, cfg.statistic_kwargs)
    return [H[t] / max(N[t], cfg.statistic_kwargs.min_tokens) for t in range(1, len(H))]


def slow_windowed(H, N, given):
    """The windowed statistic, with float32's rounding at each step."""
    f, found, sums = as_float32, [], []
    for t in range(1, len(H)):
        Y = [H[r] - given.drift * N[r] for r in range(t + 1)]
        sums.append(Y[t] - min(Y))
        n = max(N[t], given.min_tokens)
        variance = f(f(f(f(given.row_variance) * n) + f(given.token_variance)) * n)
        mean = f(f(H[t] - f(f(given.other_mean) * N[t])) / f(variance**0.5))
        found.append(max(mean, f(f(given.sum_weight) * max(sums[:t]))))
    return found


def slow_prefix_fires(hot, counted, cfg):
    """Whether the row is fired at each token, each judged by the tokens up to it."""
    crossed = [value > cfg.threshold for value in slow_values(hot, counted, cfg)]
    return [any(crossed[: t + 1]) if cfg.sticky else crossed[t] for t in range(len(crossed))]


def slow_sequence_fires(hot, counted, cfg, passes):
    """The same for passes `(start, stop, boundary)`: tokens before the boundary share the decision taken at it."""
    values = slow_values(hot, counted, cfg)
    fires, fired = [], False
    for start, stop, boundary in passes:
        own = []
        for t in range(boundary, stop):
            now = values[t] > cfg.threshold
            fired = (fired or now) if cfg.sticky else now
            own.append(fired)
        fires += [own[0]] * (boundary - start) + own
    return fires


def random_rows(seed, batch=8, seq=17):
    """Hot and counted tokens with special ones in between, and padding on either side."""
    rng = random.Random(seed)
    counted = torch.zeros(batch, seq, dtype=torch.bool)
    hot = torch.zeros_like(counted)
    for i in range(batch):
        left, right = rng.choice([(0, 0), (rng.randint(1, 6), 0), (0, rng.randint(1, 6))])
        rate = rng.choice([0.1, 0.35, 0.6, 0.9])
        for t in range(left, seq - right):
            counted[i, t] = rng.random() < 0.85
            hot[i, t] = counted[i, t] and rng.random() < rate
    return hot, counted


def rows_for(cfg, seed, batch=8):
    """Those rows as the statistic takes them: for windowed scores of either sign."""
    hot, counted = random_rows(seed, batch)
    if cfg.statistic == "windowed":
        hot = torch.where(hot, 1.25, torch.where(counted, -0.5, 0.0))
    return hot, counted


def cuts(seq, seed):
    """Random places at which a sequence is cut into passes, ends included."""
    rng = random.Random(seed)
    inner = sorted(rng.sample(range(1, seq), rng.randint(1, 6)))
    return list(zip([0, *inner], [*inner, seq], strict=True))


def run(hot, counted, cfg, pieces, boundaries=None):
    """The gate over pieces of a sequence, its state carried from one to the next as the cache does."""
    fire, states = [], []
    for i, (start, stop) in enumerate(pieces):
        past = torch.cat(states, dim=1) if states else None
        decision = decide(
            hot[:, start:stop],
            counted[:, start:stop],
            cfg,
            None if past is None else past[:, -1],
            None if boundaries is None else boundaries[i] - start,
        )
        fire.append(decision.fire)
        states.append(decision.state)
    return torch.cat(fire, dim=1), torch.cat(states, dim=1)


EVERY = pytest.mark.parametrize(
    ("statistic", "sticky", "min_tokens"),
    [
        (statistic, sticky, m)
        for statistic in STATISTICS
        for sticky in (True, False)
        for m in (1, 3, 8)
        if sticky or statistic != "windowed"
    ],
)


@EVERY
def test_prefix_scope_is_the_definition_however_the_sequence_is_cut(statistic, sticky, min_tokens):
    cfg, both = config(statistic, "prefix", sticky, min_tokens), set()
    for seed in range(4):
        hot, counted = rows_for(cfg, seed)
        expected = [slow_prefix_fires(h, c, cfg) for h, c in zip(hot.tolist(), counted.tolist(), strict=True)]
        both |= {fired for row in expected for fired in row}
        for pieces in ([(0, 17)], cuts(17, seed), [(t, t + 1) for t in range(17)]):
            fire, state = run(hot, counted, cfg, pieces)
            assert fire.tolist() == expected
            values = [slow_values(h, c, cfg) for h, c in zip(hot.tolist(), counted.tolist(), strict=True)]
            found = [[statistic_of(numbers, cfg) for numbers in row] for row in state.tolist()]
            assert torch.equal(torch.tensor(found), torch.tensor(values))
    assert both == {True, False}


@EVERY
def test_sequence_scope_is_the_definition_pass_by_pass(statistic, sticky, min_tokens):
    cfg = config(statistic, "sequence", sticky, min_tokens)
    for seed in range(4):
        hot, counted = rows_for(cfg, seed)
        pieces = cuts(17, seed)
        passes = [(start, stop, stop - 1) for start, stop in pieces]
        expected = [slow_sequence_fires(h, c, cfg, passes) for h, c in zip(hot.tolist(), counted.tolist(), strict=True)]
        assert run(hot, counted, cfg, pieces)[0].tolist() == expected


@EVERY
def test_from_the_boundary_on_tokens_are_judged_one_by_one(statistic, sticky, min_tokens):
    cfg, rng = config(statistic, "sequence", sticky, min_tokens), random.Random(0)
    for seed in range(4):
        hot, counted = rows_for(cfg, seed)
        pieces = cuts(17, seed)
        boundaries = [rng.randrange(start, stop) for start, stop in pieces]
        passes = [(*piece, boundary) for piece, boundary in zip(pieces, boundaries, strict=True)]
        expected = [slow_sequence_fires(h, c, cfg, passes) for h, c in zip(hot.tolist(), counted.tolist(), strict=True)]
        fire, state = run(hot, counted, cfg, pieces, boundaries)
        assert fire.tolist() == expected
        # the same as passes that end at the boundary and then go on by single tokens: so drafts are judged as if
        # each had been generated alone
        single = [
            piece
            for start, stop, boundary in passes
            for piece in [(start, boundary + 1), *((t, t + 1) for t in range(boundary + 1, stop))]
        ]
        one_by_one, its_state = run(hot, counted, cfg, single)
        assert torch.equal(fire[:, -1], one_by_one[:, -1])
        assert torch.equal(state[:, -1], its_state[:, -1])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_rejected_draft_leaves_no_trace(statistic, scope):
    """The state after `t` tokens of a draft is that of a pass which ended there: what cropping the cache leaves."""
    cfg = config(statistic, scope)
    for seed in range(4):
        hot, counted = rows_for(cfg, seed)
        _, drafted = run(hot, counted, cfg, [(0, 9), (9, 17)], [8, 9])
        for accepted in range(9, 17):
            _, alone = run(
                hot[:, :accepted], counted[:, :accepted], cfg, [(0, 9), *((t, t + 1) for t in range(9, accepted))]
            )
            assert torch.equal(drafted[:, accepted - 1], alone[:, -1])


@pytest.mark.parametrize("scope", SCOPES)
@EVERY
def test_a_batch_of_rows_is_its_rows_one_by_one(statistic, sticky, min_tokens, scope):
    cfg = config(statistic, scope, sticky, min_tokens)
    hot, counted = rows_for(cfg, 7, batch=16)
    fire, state = run(hot, counted, cfg, cuts(17, 3))
    for i in range(16):
        alone = run(hot[i : i + 1], counted[i : i + 1], cfg, cuts(17, 3))
        assert torch.equal(alone[0][0], fire[i])
        assert torch.equal(alone[1][0], state[i])


@pytest.mark.parametrize("scope", SCOPES)
@EVERY
def test_padding_on_either_side_changes_nothing(statistic, sticky, min_tokens, scope):
    cfg = config(statistic, scope, sticky, min_tokens)
    hot, counted = rows_for(cfg, 5)
    pad = torch.zeros(8, 5, dtype=torch.bool)
    plain = decide(hot, counted, cfg)
    left = decide(torch.cat([pad.to(hot.dtype), hot], 1), torch.cat([pad, counted], 1), cfg)
    right = decide(torch.cat([hot, pad.to(hot.dtype)], 1), torch.cat([counted, pad], 1), cfg)
    assert torch.equal(left.fire[:, 5:], plain.fire)
    assert torch.equal(right.fire[:, :17], plain.fire)
    assert torch.equal(left.state[:, -1, :4], right.state[:, -1, :4])


@pytest.mark.parametrize("scope", SCOPES)
@EVERY
def test_the_row_statistic_exceeds_the_threshold_exactly_where_the_row_fires(statistic, sticky, min_tokens, scope):
    cfg, outcomes = config(statistic, scope, sticky, min_tokens), set()
    for seed in range(8):
        hot, counted = rows_for(cfg, seed)
        values = row_statistic(hot, counted, cfg)
        fired = decide(hot, counted, cfg).fire.any(dim=1)
        assert torch.equal(values > cfg.threshold, fired)
        slow = [slow_values(h, c, cfg) for h, c in zip(hot.tolist(), counted.tolist(), strict=True)]
        expected = [max(row) if scope == "prefix" else row[-1] for row in slow]
        assert torch.equal(values, torch.tensor(expected))
        outcomes |= set(fired.tolist())
    assert outcomes == {True, False}


def test_a_statistic_equal_to_the_threshold_does_not_fire():
    hot = torch.tensor([[True, False, False, False]])
    cfg = planted_config(threshold=0.25)
    assert not decide(hot, torch.ones_like(hot), cfg).fire.any()
    cfg.threshold = 0.2499
    assert decide(hot, torch.ones_like(hot), cfg).fire.all()


def test_short_rows_count_as_if_quiet_tokens_filled_them_up():
    hot = torch.tensor([[True, True]])
    for min_tokens, expected in ((1, 1.0), (2, 1.0), (4, 0.5), (8, 0.25)):
        assert row_statistic(hot, hot, planted_config(min_tokens=min_tokens)).item() == expected


def test_the_state_says_at_which_counted_token_the_row_fired():
    hot = torch.tensor([[False, False, True, False, True, True]])
    counted = torch.tensor([[False, True, True, True, True, True]])
    state = decide(hot, counted, planted_config(gate_scope="prefix", threshold=0.4)).state
    assert state.shape == (1, 6, STATE_SIZE)
    assert State._fields == ("hits", "tokens", "lowest", "peak", "fired_at", "kept")  # the order of the columns
    assert len(State._fields) == STATE_SIZE
    assert State.of(state[0]).tokens.tolist() == [0, 1, 2, 3, 4, 5]
    assert State.of(state[0]).hits.tolist() == [0, 0, 1, 1, 2, 3]
    assert State.of(state[0]).fired_at.tolist() == [0, 0, 2, 2, 2, 2]


def test_a_row_without_content_never_fires():
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    for statistic in STATISTICS:
        for scope in SCOPES:
            cfg = config(statistic, scope)
            decision = decide(nothing, nothing, cfg)
            assert not decision.fire.any()
            assert decision.state.isfinite().all()
