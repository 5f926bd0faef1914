"""The statistics of the gate: what is measured, one false-positive rate for all, and what split-conformal promises."""

import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_setting import setting_of
from tiny_topic import tiny_parts

from benchmarks.gates import statistics as gate_statistics
from benchmarks.gates.removed_statistics import RemovedStatistic
from benchmarks.gates.statistics import STATISTICS, caught, conformal, measure, summarise
from sae_unlearn import SAEGuardrailConfig, attach_guardrail, record_firings
from sae_unlearn.backbone.tokens import special_token_ids
from sae_unlearn.guardrail import TokenRules, detach_guardrail


@pytest.fixture(scope="module")
def setting(one_thread):
    return setting_of(*tiny_parts())


QUARTERS = st.lists(st.integers(0, 16).map(lambda n: n / 4), min_size=1, max_size=30)


@given(QUARTERS, st.lists(st.booleans(), min_size=30, max_size=30), st.integers(1, 9), st.integers(1, 6))
def test_removed_statistics_are_their_definitions(hot, counted, window, least):
    counted = counted[: len(hot)]
    hot = [h if c else 0.0 for h, c in zip(hot, counted, strict=True)]
    H, N = [0.0], [0]
    for h, c in zip(hot, counted, strict=True):
        H.append(H[-1] + h)
        N.append(N[-1] + c)
    steps = range(1, len(H))
    recent = []
    for t in steps:
        before = [s for s in range(t + 1) if N[s] <= N[t] - window]
        recent.append((H[t] - (H[max(before)] if before else 0)) / min(max(N[t], least), window))
    Y = [h - 0.75 * n for h, n in zip(H, N, strict=True)]
    expected = {
        "window": max(recent),
        "cusum": max(Y[t] - min(Y[: t + 1]) for t in steps),
        "ratio_or_window": max(H[-1] / max(N[-1], least), 0.35 * max(recent)),
    }
    for name, value in expected.items():
        found = RemovedStatistic(name, window, 0.75).of_rows(torch.tensor([hot]), torch.tensor([counted]), least)
        assert float(found) == pytest.approx(value, abs=1e-9), name


def test_the_ratio_is_that_of_the_gate(setting):
    texts, ids = setting.texts.test, list(range(20))
    counted = SAEGuardrailConfig(layer=setting.layer, feature_ids=ids)
    weighed = SAEGuardrailConfig(layer=setting.layer, feature_ids=ids, feature_evidence=[0.25 * (i + 1) for i in ids])
    gates = {"counted": (gate_statistics.gate_of(counted), None), "weighed": (gate_statistics.gate_of(weighed), None)}
    found = gate_statistics.statistics_of(setting, gates, texts)
    special = special_token_ids(setting.tokenizer, setting.model.config)
    for name, (config, _) in gates.items():
        config.threshold, config.clamp_value, config.tokens = 0.5, -1.0, TokenRules(special_ids=special)
        guarded = attach_guardrail(setting.model, config, sae=setting.sae)
        with record_firings(guarded) as firings, torch.no_grad():
            for text in texts:
                guarded(**setting.tokenizer(text, return_tensors="pt"))
        assert [f.statistic for f in firings] == pytest.approx(found[name], abs=1e-4), name
        detach_guardrail(guarded)


def test_a_topic_is_measured_and_summed_up(setting, tmp_path, monkeypatch):
    found = measure(setting, words=(0, 20))
    (tmp_path / "tiny-0.json").write_text(json.dumps(found))
    text = summarise(tmp_path)
    assert all(name in text for name in STATISTICS)
    assert "topic, 20 words around" in text
    assert len(found["topic"]["20"]["ratio"]) == len(setting.texts.test)
    mean = {w: sum(found["topic"][w]["ratio"]) for w in ("0", "20")}
    assert mean["20"] < mean["0"], "the ratio is diluted"


def test_the_threshold_is_set_on_one_half_of_the_other_texts_and_tried_on_the_other():
    values = [0.0, 1.0] * 50  # the half that sets it is always 0, the other always 1
    topic = {"other": {"0": {"ratio": values}}, "topic": {"0": {"ratio": [0.5, -1.0]}}}
    false, hits = caught(topic, "ratio")
    assert false == [True] * 50
    assert hits == {"0": [True, False]}


def test_split_conformal_thresholds_keep_their_promise_on_exchangeable_values_and_are_none_on_too_few():
    draw = random.Random(0)
    mean, above = conformal([draw.random() for _ in range(200)], 0.1)
    assert 0.06 < mean < 0.11
    assert 0 < above < 0.6
    assert conformal([draw.random() for _ in range(10)], 0.05) is None


@pytest.mark.slow
def test_a_statistic_that_is_better_is_named(tmp_path):
    n = 40
    low, high = [i / 1000 for i in range(n)], [1.0] * n

    def side(ratio, others):
        return {w: {name: (ratio if name == "ratio" else others) for name in STATISTICS} for w in ("0", "64")}

    found = {"other": side(low, low), "topic": side(low, high)}
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert "window of 16, window of 32" in summarise(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(found | {"topic": side(high, low)}))
    assert "one rate: none; of these worse at 0: none." in summarise(tmp_path)


def test_at_one_rate_the_threshold_is_the_lowest_that_so_many_other_texts_exceed():
    topic = {
        "other": {"0": {"ratio": [float(i) for i in range(60)]}, "9": {"ratio": [float(i) for i in range(60, 100)]}}
    }
    topic["topic"] = {"0": {"ratio": [94.0, 94.5]}}
    other, fires = gate_statistics.at_rate(topic, "ratio", rate=0.05)
    assert sum(other) == 5
    assert fires == {"0": [False, True]}
