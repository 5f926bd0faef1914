"""Another threshold from stored statistics, and the judgement of a fit in words."""

import itertools
import json

import pytest
import torch
from fitting import FORGET, RETAIN, SAE, config_of, fit
from tiny_topic import save_adapters

from sae_unlearn import attach_guardrail, set_threshold
from sae_unlearn.cli.main import main
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.fit.selection import FeatureSums
from sae_unlearn.guardrail.tuning.curve_plot import curve
from sae_unlearn.guardrail.tuning.stored import tune_guardrail
from sae_unlearn.guardrail.tuning.trade_off import trade_off
from sae_unlearn.guardrail.tuning.verdict import judge


def calibration(forget, retain, calibrated_on=None, **more):
    rows = {"statistic_forget": forget, "statistic_retain": retain, "statistic_threshold_rows": calibrated_on or retain}
    return rows | {"warnings": ["of the fit"]} | more


MANY = [i / 200 for i in range(100)]  # 0 to 0.495
TOPIC = [0.3 + i / 100 for i in range(50)]  # 0.3 to 0.79


@pytest.mark.parametrize("recall", [0.5, 0.9, 1.0, 0.013])
def test_the_target_recall_is_reached_and_no_threshold_above_reaches_it(recall):
    found = trade_off(calibration(TOPIC, MANY), target_recall=recall)
    assert found.recall["rate"] >= recall
    higher = sum(value > found.threshold + 0.01 for value in TOPIC) / len(TOPIC)
    assert higher < recall
    assert found.false_alarms["rate"] == sum(v > found.threshold for v in MANY) / len(MANY)


def test_the_share_of_false_alarms_is_that_of_conformal_prediction():
    draw = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(200):
        seen, fresh = (torch.rand(99, generator=draw).tolist() for _ in range(2))
        found = trade_off(calibration(TOPIC, fresh, seen), max_false_alarms=0.05)
        assert found.threshold == sorted(seen)[94]  # the 95th smallest of 99
        rates.append(found.false_alarms["rate"])
    assert sum(rates) / len(rates) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing given"),
        ({"target_recall": 0.9, "threshold": 0.5}, "exactly one"),
        ({"target_recall": 0.0}, "target_recall=0.0"),
        ({"target_recall": 1.5}, "target_recall=1.5"),
        ({"max_false_alarms": 0.001}, "999"),
        ({"max_false_alarms": 1}, "max_false_alarms=1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": True}, "threshold=True"),
    ],
)
def test_what_cannot_be_chosen_is_refused(asked, message):
    with pytest.raises(GuardrailError, match=message):
        trade_off(calibration(TOPIC, MANY), **asked)


def test_a_calibration_without_statistics_is_refused():
    with pytest.raises(GuardrailError, match=r"^calibration: .*got none"):
        trade_off({}, target_recall=0.9)


def test_the_curve_starts_at_no_row_and_ends_at_all():
    points = curve(calibration(TOPIC, MANY))
    assert points[0][1:] == (0, 0)
    assert points[-1][1:] == (1, 1)
    assert all(a[1] <= b[1] and a[2] <= b[2] for a, b in itertools.pairwise(points))


@pytest.mark.slow
def test_a_threshold_of_an_attached_guardrail_holds_and_is_saved(tmp_path):
    guarded = fit()
    config = config_of(guarded)
    before, features = config.threshold, config.feature_ids
    found = set_threshold(guarded, target_recall=0.5)
    assert config.threshold == found.threshold != before
    assert config.feature_ids == features
    assert config.calibration["fire_rate_forget"]["rate"] >= 0.5
    guarded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["threshold"] == found.threshold
    with pytest.raises(GuardrailError, match="name='other'"):
        set_threshold(guarded, "other", target_recall=0.5)
    assert set_threshold(guarded, threshold=before).threshold == config.threshold == before
    assert config.calibration["auroc_short"] is not None
    assert len(FORGET) + len(RETAIN) == 80


@pytest.mark.slow
def test_the_command_writes_a_guardrail_that_attaches(tmp_path, capsys):
    save_adapters(tmp_path)
    source, target = tmp_path / "guardrail", tmp_path / "tuned"
    assert main(["tune", str(source), "--picture", str(tmp_path / "curve.png")]) == 0
    shown = capsys.readouterr().out
    assert "Now" in shown
    assert "Topic: " in shown
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["tune", str(source), "--target-recall", "0.6", "--output", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "Chosen" in shown
    assert "Next: sae-unlearn check --model tiny-llama --adapter" in shown

    from transformers import AutoModelForCausalLM

    guarded = attach_guardrail(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), target)
    stored = config_of(guarded)
    assert stored.calibration["threshold_chosen_by"] == {"target_recall": 0.6}
    assert (target / "README.md").read_text() != (source / "README.md").read_text()

    before = (source / "adapter_config.json").read_text()
    with pytest.raises(GuardrailError, match="max_false_alarms"):
        tune_guardrail(source, source, max_false_alarms=0.0001)
    assert (source / "adapter_config.json").read_text() == before
    assert main(["tune", str(source), "--max-false-alarms", "0.2", "--in-place"]) == 0
    assert (source / "adapter_config.json").read_text() != before


def rates(recall, alarms, n=60):
    return {
        "fire_rate_forget": {"rate": recall, "low": recall - 0.05, "high": recall + 0.05, "n": n},
        "fire_rate_retain": {"rate": alarms, "low": max(0, alarms - 0.05), "high": alarms + 0.05, "n": n},
    }


@pytest.mark.parametrize(
    ("found", "works", "topic", "step"),
    [
        ({"auroc": 0.99, **rates(0.95, 0.02)}, True, "tells it well", "sae-unlearn check"),
        ({"auroc": 0.90, **rates(0.33, 0.02)}, False, "in part", "--target-recall 0.8"),
        ({"auroc": 0.90, "crowded": True, **rates(0.33, 0.02)}, False, "in part", "another layer"),
        ({"auroc": 0.70, **rates(0.33, 0.02)}, False, "hardly tells it", "scout"),
        ({"auroc": 0.99, **rates(0.95, 0.30)}, False, "tells it well", "near the topic"),
        ({"auroc": 0.99, **rates(0.95, 0.02, n=9)}, True, "tells it well", "more topic text"),
        ({"auroc": 0.99, "edit_to_residual": 0.1, **rates(0.95, 0.02)}, True, "tells it well", "--clamp-scale"),
    ],
)
def test_the_verdict_names_one_next_step(found, works, topic, step):
    crowded = found.pop("crowded", False)
    verdict = judge(calibration(TOPIC, [0.5] * 100 if crowded else [0.1] * 100, **found), "here")
    assert verdict.works == works
    assert topic in verdict.lines[0]
    assert step in verdict.step
    assert verdict.ready == (step == "sae-unlearn check")
    assert "Next: " in str(verdict)


def test_short_text_is_judged_where_it_was_measured_and_nothing_where_nothing_was():
    found = judge(calibration(TOPIC, MANY, auroc=0.99, auroc_short=0.7, **rates(0.95, 0.02)))
    assert "separated badly (AUROC 0.700)" in found.lines[1]
    assert judge({}) is None
    assert judge({"auroc": "0.9"}) is None


@pytest.mark.parametrize(
    ("explained", "says", "step"),
    [
        ({"forget": 0.75, "retain": 0.8}, None, "sae-unlearn check"),
        (
            {"forget": 0.4, "retain": 0.8},
            "explains 40% of the variance of the topic and 80% of other",
            "on texts that hold",
        ),
        ({"forget": -4.1, "retain": 0.8}, "explains none of the variance of the topic and 80%", "on texts that hold"),
        ({"forget": -48.81, "retain": -40.0}, "does not fit this layer: it explains none", "sae-unlearn saes MODEL"),
        ({"forget": 0.5, "retain": 0.41}, "may be of another layer: it explains 41% of the", "sae-unlearn saes MODEL"),
        ({"forget": -1.0}, "explains none of the variance of the topic", "sae-unlearn saes MODEL"),
        ({"forget": "0.1", "retain": None}, None, "sae-unlearn check"),
        ("damaged", None, "sae-unlearn check"),
    ],
)
def test_an_sae_that_cannot_rebuild_the_text_is_named_before_all_else(explained, says, step):
    verdict = judge(calibration(TOPIC, MANY, auroc=0.99, explained_variance=explained, **rates(0.95, 0.02)))
    assert verdict.works == verdict.ready == (says is None)
    assert (says or "Topic: this SAE tells it well") in verdict.lines[0]
    assert step in verdict.step
    if says is not None:
        assert "Topic: even so, this SAE tells it well" in verdict.lines[1]


def test_explained_variance_is_that_of_its_equation():
    h = torch.randn(70, SAE.d_in, generator=torch.Generator().manual_seed(1)) * 3 + 1
    sums = FeatureSums(SAE)
    for part in h.split(30):
        sums.add(part)
    error, centered = (SAE(h) - h).double(), (h - h.mean(0)).double()
    wanted = 1 - float(error.square().sum() / centered.square().sum())
    assert sums.reconstruction.explained() == pytest.approx(wanted, abs=1e-3)
    assert FeatureSums(SAE).reconstruction.explained() is None
