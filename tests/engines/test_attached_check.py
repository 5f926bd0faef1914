"""The test of a model's own guardrails by their stored rows."""

import pytest
import served
from transformers import AutoModelForCausalLM

from sae_unlearn import GuardrailError, attach_guardrail
from sae_unlearn.engines.attached_check import check_attached
from sae_unlearn.engines.probe_check import NO_PROBE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with guardrails whose probe is honest, false, or missing."""
    folder = tmp_path_factory.mktemp("attached")
    model = served.save_model(folder, "gemma3")
    plain = served.save_guardrail(folder, model)
    rows = served.prompts(4, seed=9, longest=60)
    fired = [records["guard"][0] for _, records in served.expected(model, [plain], rows, tokens=1)]
    for name, wanted in (("honest", True), ("false", False)):
        probe = {"probe": {"forget": rows}, "probe_statistics": {"forget": [float(did == wanted) for did in fired]}}
        served.save_guardrail(folder, model, name, calibration=probe)
    served.save_guardrail(folder, model, "later", layer=2, seed=3, calibration=probe)
    return folder


def attached(folder, *names):
    model = AutoModelForCausalLM.from_pretrained(folder / "gemma3").eval()
    for name in names:
        model = attach_guardrail(model, folder / name, adapter_name=name)
    return model


def test_the_gate_does_what_it_did_at_the_fit(folder):
    found = check_attached(attached(folder, "honest", "guard", "later"))
    assert "of 4 stored rows on the topic, as at the fit" in found["honest"]
    assert found["guard"] == NO_PROBE
    assert "as at the fit" not in found["later"]  # an earlier guardrail may have edited what it reads


def test_another_outcome_is_refused(folder):
    with pytest.raises(GuardrailError, match="guardrail false"):
        check_attached(attached(folder, "false"))
