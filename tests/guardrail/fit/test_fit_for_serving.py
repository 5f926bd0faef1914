"""`for_serving`: prefix scope, the chat template, and a threshold on other text at the length of requests."""

import pytest
from fitting import FORGET, RETAIN, TOKENIZER, config_of, fit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_topic import tiny_tokenizer

from sae_unlearn import GuardrailError
from sae_unlearn.cli import fit as command
from sae_unlearn.cli.main import build_parser
from sae_unlearn.guardrail.fit.serving_lengths import joined_rows


BOS = 1
ROWS = st.lists(st.lists(st.integers(2, 9), max_size=6).map(lambda row: [BOS, *row]), min_size=1, max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, st.integers(1, 40))
def test_each_row_is_continued_by_those_after_it(rows, length):
    found = joined_rows(rows, length, {BOS})
    assert len(found) == len(rows)
    for start, row in enumerate(found):
        following = [token for each in rows[start + 1 :] + rows[:start] for token in each if token != BOS]
        assert row == (rows[start] + following)[:length]


def test_it_is_prefix_scope_with_a_threshold_of_long_rows():
    short = config_of(fit(gate_scope="prefix", max_length=64))
    long = config_of(fit(for_serving=True, max_length=256))
    assert long.gate_scope == short.gate_scope == "prefix"
    assert long.calibration["for_serving"]
    assert "for_serving" not in short.calibration
    assert long.threshold >= short.threshold  # the largest statistic of a prefix grows with the row
    assert min(long.calibration["statistic_threshold_rows"]) >= min(short.calibration["statistic_threshold_rows"])


def test_it_applies_a_chat_template_if_there_is_one():
    assert config_of(fit(for_serving=True)).calibration["chat_template"] == bool(TOKENIZER.chat_template)
    chat = tiny_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert config_of(fit(for_serving=True, tokenizer=chat)).calibration["chat_template"]


@pytest.mark.parametrize(("more", "match"), [({"preset": "faithful"}, "preset")])
def test_what_no_engine_can_judge_is_refused(more, match):
    with pytest.raises(GuardrailError, match=match):
        fit(forget=FORGET, retain=RETAIN, for_serving=True, **more)


def test_the_next_command_serves():
    words = ["fit", "--model", "m", "--sae", "s", "--output", "o", "--for-serving"]
    args = build_parser().parse_args(words)
    assert command.next_step(args) == "sae-unlearn serve m --adapter o"
