"""Thousands of strange corpora, batches and statistics: each is read as it says or refused."""

import pytest
import torch
from damage import in_time
from fuzzing import JSON, QUICK
from hypothesis import given
from hypothesis import strategies as st
from zoo import VOCAB

from sae_unlearn import UnlearnError
from sae_unlearn.backbone.tokens import read_corpus
from sae_unlearn.guardrail.fit.calibration import fire_rate, percentile_threshold


ROW = st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=9)
ODD = st.one_of(
    JSON,
    st.binary(max_size=4),
    st.fixed_dictionaries({"text": JSON}),
    st.fixed_dictionaries({"input_ids": ROW | st.lists(ROW, max_size=3) | JSON}),
    st.fixed_dictionaries({"input_ids": st.lists(ROW, max_size=3), "attention_mask": st.lists(ROW, max_size=3) | JSON}),
)
DTYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.int16]


@pytest.mark.slow
@QUICK
@given(st.lists(ODD, max_size=4) | ODD)
@in_time()
def test_a_corpus_is_read_or_refused(corpus):
    try:
        documents = list(read_corpus(corpus, None, "forget", 16))
    except UnlearnError:
        return
    for document in documents:
        assert all(row and all(isinstance(token, int) for token in row) for row in document.rows)


@pytest.mark.slow
@QUICK
@given(st.data(), st.integers(0, 4), st.integers(0, 9), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
@in_time()
def test_a_batch_gives_the_rows_that_its_mask_keeps(data, batch, seq, kind, mask_kind):
    numbers = st.lists(st.lists(st.integers(0, 1), min_size=seq, max_size=seq), min_size=batch, max_size=batch)
    ids = torch.tensor(data.draw(numbers)).reshape(batch, seq).to(kind)
    mask = torch.tensor(data.draw(numbers)).reshape(batch, seq).to(mask_kind)
    try:
        rows = [
            row for d in read_corpus([{"input_ids": ids, "attention_mask": mask}], None, "retain", 16) for row in d.rows
        ]
    except UnlearnError:
        assert kind == torch.float32
        return
    assert rows == [ids[i][mask[i].bool()].tolist() for i in range(batch) if mask[i].any()]


@pytest.mark.slow
@QUICK
@given(
    st.lists(st.floats(0, 1, width=32), max_size=12),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12),
    st.floats(0, 100),
)
@in_time()
def test_a_threshold_is_one_of_its_range_whatever_the_statistics(forget, retain, percentile):
    threshold = percentile_threshold(torch.tensor(retain), percentile)
    assert min(retain) - 1e-6 <= threshold <= max(retain) + 1e-6
    rate = fire_rate(torch.tensor(forget), threshold)
    assert rate["n"] == len(forget)
    assert 0 <= rate["low"] <= rate["high"] <= 1
