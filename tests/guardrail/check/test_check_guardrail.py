"""`check_guardrail`: each finding, by a guardrail that was spoilt in one way."""

import json

import pytest
import torch
from config_fields import with_fields
from safetensors.torch import load_file, save_file
from tiny_topic import tiny_parts, topic_texts
from zoo import base_model

from sae_unlearn import GuardrailError, fit_guardrail
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.check import check as module
from sae_unlearn.guardrail.check.check import check_guardrail
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


FORGET, RETAIN = topic_texts("forget", 12, seed=6), topic_texts("retain", 20, seed=6)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """`(model, tokenizer, folder)` of a guardrail with a moderate dose."""
    folder = tmp_path_factory.mktemp("fitted")
    model, tokenizer, sae = tiny_parts()
    guarded = fit_guardrail(
        model,
        tokenizer,
        sae,
        topic_texts("forget", 60),
        topic_texts("retain", 80),
        ratio_percentile=95.0,
        threshold_percentile=90.0,
        clamp_scale=5.0,
        clamp_unit="feature",
        store_probe=True,
        progress=False,
    )
    guarded.save_pretrained(folder)
    return tiny_parts()[0], tokenizer, folder


def changed(folder, target, calibration=None, tensors=None, sealed=False, **fields):
    """A copy of a guardrail with other config fields, calibration entries or scaled tensors, and without its seal."""
    config = with_fields(json.loads((folder / "adapter_config.json").read_text()), **fields)
    config = {name: value for name, value in config.items() if sealed or not name.endswith("_sha256")}
    config["calibration"] = config["calibration"] | (calibration or {})
    (target / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors")
    for part, factor in (tensors or {}).items():
        weights = {name: t * factor if name.endswith(part) else t for name, t in weights.items()}
    save_file(weights, target / "adapter_model.safetensors")
    return target


def found(report, subject):
    return [finding for finding in report.findings if finding.subject == subject]


def test_all_is_well(fitted):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, folder, tokenizer, FORGET, RETAIN)
    assert report.ok, report
    assert {f.subject for f in report.findings} >= {"base model", "fires", "quiet", "margin", "dose"}
    assert found(report, "dose")[0].status == "ok"


def test_a_guardrail_that_is_not_as_it_was_saved_is_a_problem(fitted, tmp_path):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, sealed=True, threshold=0.123), tokenizer, FORGET, RETAIN)
    assert not report.ok
    assert "changed after it was saved" in found(report, "seal")[0].sentence


def test_the_stored_rows_suffice(fitted):
    model, _, folder = fitted
    report = check_guardrail(model, folder)
    assert report.ok
    assert "stored forget rows" in found(report, "fires")[0].sentence
    assert "stored retain rows" in found(report, "quiet")[0].sentence


def test_the_model_is_left_alone(fitted):
    model, tokenizer, folder = fitted
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_guardrail(model, folder, tokenizer, FORGET, RETAIN)
    assert not guard_layers(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_it_measures_what_the_fit_measured(fitted):
    """Given the very rows of the fit's report, statistics and edit come out as recorded."""
    model, _, folder = fitted
    artefact = GuardrailFolder.open(folder).artefact()
    recorded = artefact.config.calibration
    rows = recorded["probe"]["forget"]
    measured = module._measure(artefact, model, rows, 8)
    assert measured.statistics.tolist() == pytest.approx(recorded["probe_statistics"]["forget"], abs=1e-5)


def test_a_model_of_another_shape(fitted, tmp_path):
    _, tokenizer, folder = fitted
    report = check_guardrail(base_model("llama"), changed(folder, tmp_path, num_layers=9), tokenizer, FORGET, RETAIN)
    assert not report.ok
    assert len(report.findings) == 1
    assert "number of layers 9" in report.findings[0].sentence


def test_a_model_with_other_weights(fitted):
    _, tokenizer, folder = fitted
    other = base_model("llama")
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(0.5)
    report = check_guardrail(other, folder, tokenizer)
    assert found(report, "base model")[0].status == "problem"
    assert "sampled embedding weights differ" in found(report, "base model")[0].sentence


def test_a_model_that_computes_something_else(fitted):
    """The fingerprint fits, but the stored rows are read otherwise."""
    _, _, folder = fitted
    other = tiny_parts()[0]
    for layer in other.model.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: -8 * output)
    report = check_guardrail(other, folder)
    assert found(report, "base model")[0].status == "ok"
    problems = [f for f in report.findings if f.status == "problem"]
    assert problems
    assert any("the model computes something else" in f.sentence for f in problems)


def test_no_fingerprint(fitted, tmp_path):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, fingerprint=None), tokenizer)
    assert found(report, "base model")[0].status == "warning"


def test_a_gate_that_never_fires(fitted, tmp_path):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, threshold=20.0), tokenizer, FORGET, RETAIN)
    assert found(report, "fires")[0].status == "problem"
    assert " of 12 rows of the forget text, less than 80%" in found(report, "fires")[0].sentence


def test_a_gate_that_always_fires(fitted, tmp_path):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, threshold=0.0), tokenizer, FORGET, RETAIN)
    assert found(report, "quiet")[0].status == "problem"


def test_features_of_another_topic(fitted):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, folder, tokenizer, RETAIN, FORGET)
    assert found(report, "margin")[0].status == "problem"
    assert not report.ok


@pytest.mark.parametrize(("factor", "status", "mend"), [(0.0, "problem", "Raise"), (9.0, "warning", "Lower")])
def test_a_dose_of_another_size(fitted, tmp_path, factor, status, mend):
    model, tokenizer, folder = fitted
    spoilt = changed(folder, tmp_path, tensors={"decoder.clamp": factor, "decoder.weight": max(factor, 0.01)})
    dose = found(check_guardrail(model, spoilt, tokenizer, FORGET), "dose")
    assert (dose[0].status, mend in dose[0].sentence) == (status, True)
    assert any("At the fit the edit was" in f.sentence for f in dose[1:])


def test_a_guardrail_that_only_records(fitted, tmp_path):
    model, tokenizer, folder = fitted
    dose = found(check_guardrail(model, changed(folder, tmp_path, action="record"), tokenizer), "dose")
    assert "only reports" in dose[0].sentence


def test_nothing_to_measure_on(fitted, tmp_path):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, calibration={"probe": None}), tokenizer)
    assert report.ok
    assert {f.subject for f in report.findings if f.status == "warning"} >= {"fires", "quiet"}
    assert "as recorded at the fit" in found(report, "dose")[0].sentence
    bare = changed(folder, tmp_path, calibration={"probe": None, "edit_to_residual": "x"})
    assert "was not measured" in found(check_guardrail(model, bare), "dose")[0].sentence


@pytest.mark.parametrize(
    "probe",
    [
        3,
        [[1]],
        {"forget": 3},
        {"forget": [[10**6]]},
        {"forget": [[-1]]},
        {"forget": [["a"]]},
        {"forget": [[]]},
        {"forget": [[5]] * 1000},
        {"retain": [[True]]},
    ],
)
def test_a_malformed_probe(fitted, tmp_path, probe):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, calibration={"probe": probe}), tokenizer)
    assert "at most 16 rows of token ids below 97" in found(report, "probe")[0].sentence


@pytest.mark.parametrize("value", ["x", [None], {"a": 1}, pytest.param(10**300, id="huge"), True])
def test_a_malformed_calibration(fitted, tmp_path, value):
    model, tokenizer, folder = fitted
    names = ("probe_statistics", "edit_to_residual", "threshold_percentile", "max_length")
    spoilt = changed(folder, tmp_path, calibration=dict.fromkeys((*names, "warnings"), value))
    check_guardrail(model, spoilt, tokenizer)
    check_guardrail(model, spoilt, tokenizer, FORGET, RETAIN)


def test_recorded_warnings_are_passed_on(fitted, tmp_path):
    model, tokenizer, folder = fitted
    report = check_guardrail(model, changed(folder, tmp_path, calibration={"warnings": ["thin"]}), tokenizer)
    assert [f.sentence for f in found(report, "fit")] == ["thin"]


def test_no_guardrail_and_no_text_are_errors(fitted, tmp_path):
    model, tokenizer, folder = fitted
    with pytest.raises(GuardrailError, match=r"has no adapter_config\.json"):
        check_guardrail(model, tmp_path)
    with pytest.raises(GuardrailError, match=r"^forget: .*got none"):
        check_guardrail(model, folder, tokenizer, [])
    with pytest.raises(GuardrailError, match="tokenizer="):
        check_guardrail(model, folder, None, FORGET)
