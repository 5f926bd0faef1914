"""Sweeps over dose and threshold, against guardrails that have those settings."""

import copy
import json

import pytest
import torch
from tiny_topic import tiny_parts, topic_texts

from sae_unlearn import GuardrailError, fit_guardrail, fit_guardrails, list_guardrails, set_action
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Sweep, row_losses, sweep_guardrail
from sae_unlearn.guardrail import guard_layers


TEXTS = {"forget": topic_texts("forget", 10, seed=3), "retain": topic_texts("retain", 9, seed=3)}
DOSES, THRESHOLDS = (0.0, 0.5, 3.0), (0.2, 0.45)


def fitted(**options):
    model, tokenizer, sae = tiny_parts()
    texts = {"forget": topic_texts("forget", 40), "retain": topic_texts("retain", 80)}
    options = {"clamp_unit": "feature", "clamp_scale": 40.0, "progress": False} | options
    return fit_guardrail(model, tokenizer, sae, **texts, **options), tokenizer


@pytest.fixture(scope="module")
def parts():
    return fitted()


@pytest.fixture(scope="module")
def sweep(parts):
    return sweep_guardrail(*parts, **TEXTS, doses=DOSES, thresholds=THRESHOLDS, batch_size=3, progress=False)


def by_hand(parts, dose=1.0, threshold=None):
    """Mean losses by role of a copy of the model whose guardrail has another dose and threshold."""
    guarded, tokenizer = copy.deepcopy(parts[0]), parts[1]
    (layer,) = guard_layers(guarded)
    with torch.no_grad():
        layer.guardrail("default").decoder.clamp.mul_(dose)
    if threshold is not None:
        layer.guardrail("default").config.threshold = threshold
    return {role: float(row_losses(guarded, tokenizer, texts, batch_size=1).mean()) for role, texts in TEXTS.items()}


def without(parts):
    with parts[0].disable_adapter():
        return {role: float(row_losses(*parts, texts, batch_size=1).mean()) for role, texts in TEXTS.items()}


@pytest.mark.slow
def test_every_point_is_the_change_that_a_guardrail_so_set_makes(parts, sweep):
    base, own = without(parts), parts[0].peft_config["default"].threshold
    assert sweep.base_loss == pytest.approx(base, abs=1e-5)
    assert [point.setting for point in sweep.doses] == [0.0, 0.5, 1.0, 3.0]
    assert [point.setting for point in sweep.thresholds] == sorted({*THRESHOLDS, own})
    settings = [(point, {"dose": point.setting}) for point in sweep.doses]
    settings += [(point, {"threshold": point.setting}) for point in sweep.thresholds]
    for point, setting in settings:
        for role, loss in by_hand(parts, **setting).items():
            assert point.change[role].value == pytest.approx(loss - base[role], abs=1e-5), (setting, role)
            assert point.change[role].n == len(TEXTS[role])
    changes = [point.change["forget"].value for point in sweep.doses]
    assert max(map(abs, changes)) > 1e-3, "the tiny guardrail does nothing, and this test shows nothing"


def test_the_rates_are_those_of_the_gate(parts, sweep):
    (layer,) = guard_layers(parts[0])
    config, _, _ = layer.guardrail("default")
    lowest, highest = sweep.thresholds[0], sweep.thresholds[-1]
    assert lowest.fires["forget"] > highest.fires["forget"] > highest.fires["retain"]
    assert {tuple(point.fires.items()) for point in sweep.doses} == {
        tuple(next(p for p in sweep.thresholds if p.setting == config.threshold).fires.items())
    }


def test_prefix_scope_is_measured_threshold_by_threshold():
    parts = fitted(gate_scope="prefix")
    found = sweep_guardrail(*parts, **TEXTS, doses=(3.0,), thresholds=(0.2,), batch_size=3, progress=False)
    base = without(parts)
    for point, setting in ((found.doses[-1], {"dose": 3.0}), (found.thresholds[0], {"threshold": 0.2})):
        for role, loss in by_hand(parts, **setting).items():
            assert point.change[role].value == pytest.approx(loss - base[role], abs=1e-5)


def test_where_padding_counts_rows_are_run_alone():
    parts = fitted(preset="faithful", clamp_unit="absolute", clamp_scale=None, clamp_value=-40.0)
    found = sweep_guardrail(*parts, **TEXTS, doses=(), thresholds=(0.3,), batch_size=4, progress=False)
    base = without(parts)
    for role, loss in by_hand(parts, threshold=0.3).items():
        assert found.thresholds[0].change[role].value == pytest.approx(loss - base[role], abs=1e-5)


def test_the_model_is_left_as_it_was(monkeypatch):
    model, tokenizer, sae = tiny_parts()
    topics = {"first": topic_texts("forget", 40), "second": topic_texts("forget", 40, seed=5)}
    guarded = fit_guardrails(model, tokenizer, sae, topics, topic_texts("retain", 80), progress=False)
    set_action(guarded, "first", "record")
    before = (list_guardrails(guarded), {k: v.clone() for k, v in guarded.state_dict().items()})
    found = sweep_guardrail(guarded, tokenizer, **TEXTS, adapter_name="first", progress=False)
    assert found.doses[-1].change["forget"].value != 0  # it clamps while it is swept
    assert list_guardrails(guarded) == before[0]
    assert all(torch.equal(value, before[1][key]) for key, value in guarded.state_dict().items())
    monkeypatch.setattr("sae_unlearn.evaluation.explorer.sweep.batch_losses", None)
    with pytest.raises(TypeError):
        sweep_guardrail(guarded, tokenizer, **TEXTS, adapter_name="first", progress=False)
    assert list_guardrails(guarded) == before[0]
    assert all(torch.equal(value, before[1][key]) for key, value in guarded.state_dict().items())


def test_rows_of_one_text_count_as_one():
    parts = fitted(max_length=8)
    found = sweep_guardrail(*parts, **TEXTS, doses=(), thresholds=(), progress=False)
    assert found.doses[0].change["forget"].n == len(TEXTS["forget"])


def test_bad_input_is_refused(parts):
    with pytest.raises(UnlearnError, match=r"^doses=-1\.0"):
        sweep_guardrail(*parts, **TEXTS, doses=(-1.0,))
    with pytest.raises(GuardrailError, match="forget=None, retain=None"):
        sweep_guardrail(*parts)
    with parts[0].disable_adapter(), pytest.raises(GuardrailError, match=r"^model: .*disable_adapter"):
        sweep_guardrail(*parts, **TEXTS, progress=False)


def test_it_is_kept_and_belongs_to_its_guardrail(parts, sweep, tmp_path):
    path = sweep.save(tmp_path / "sweep.json")
    assert Sweep.load(path) == sweep == Sweep.from_dict(sweep.to_dict())
    sweep.check_is_of(parts[0].peft_config["default"])
    other = copy.deepcopy(parts[0].peft_config["default"])
    other.threshold = 0.123
    with pytest.raises(GuardrailError, match=r"sweep\.threshold=\d+\.\d+: expected 0\.123"):
        sweep.check_is_of(other)
    for text in ("{}", "[]", "nonsense", json.dumps(sweep.to_dict() | {"doses": [{"setting": 1}]})):
        path.write_text(text)
        with pytest.raises(UnlearnError, match=r"sweep\.json: .*got "):
            Sweep.load(path)
