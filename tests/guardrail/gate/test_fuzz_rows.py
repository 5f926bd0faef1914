"""Thousands of drawn rows: each is judged alike whole and in pieces, alone and in any batch."""

from functools import cache

import pytest
import torch
from damage import in_time
from fuzzing import FEW, QUICK
from hypothesis import given
from hypothesis import strategies as st
from zoo import PAD, VOCAB, guarded

from sae_unlearn import SAEGuardrailConfig, record_firings
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.guardrail.gate.decision import decide, row_statistic


@cache
def guarded_model():
    return guarded("llama")


@pytest.mark.slow
@QUICK
@given(
    st.data(),
    st.integers(1, 12),
    st.sampled_from(CHOICES["statistic"]),
    st.sampled_from(CHOICES["gate_scope"]),
    st.integers(1, 6),
    st.floats(0, 0.9),
)
@in_time()
def test_a_row_is_judged_alike_whole_and_in_pieces(data, seq, statistic, scope, size, threshold):
    """The gate over a row at once, and token by token from a carried state, whatever is padding and what is hot."""
    flags = st.lists(st.booleans(), min_size=seq, max_size=seq)
    counted = torch.tensor([data.draw(flags)])
    hot = torch.tensor([data.draw(flags)]) & counted
    config = SAEGuardrailConfig(
        feature_ids=[0],
        statistic=statistic,
        gate_scope=scope,
        threshold=threshold,
        statistic_kwargs={"min_tokens": size},
    )
    value = float(row_statistic(hot, counted, config))
    whole = decide(hot, counted, config)
    assert bool(whole.fire[0, -1]) == (value > torch.tensor(threshold))
    assert value == value
    state, fired = None, []
    for t in range(seq):
        step = decide(hot[:, t : t + 1], counted[:, t : t + 1], config, state)
        state = step.state[:, -1]
        fired.append(bool(step.fire[0, 0]))
    if scope == "prefix":
        assert fired == whole.fire[0].tolist()


@FEW
@given(
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
    st.sampled_from([torch.int64, torch.bool, torch.float32]),
)
@in_time()
def test_any_batch_is_guarded_row_by_row(rows, side, dtype):
    """Lengths, masks of any dtype, rows of padding and special tokens alone: each row is judged, as it is alone."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    model = guarded_model()
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=ids, attention_mask=mask.to(dtype))
    alone = []
    for row in rows:
        with record_firings(model) as one, torch.no_grad():
            model(input_ids=torch.tensor([row]))
        alone += [(f.evidence, f.tokens, f.fired) for f in one]
    assert [(f.evidence, f.tokens, f.fired) for f in firings] == alone
