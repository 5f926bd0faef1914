"""The same guardrail is not put on a model twice without a word, whatever it is called."""

import warnings

import pytest
import torch
from fitting import fit
from peft import PeftModel
from zoo import base_model, guarded, logits_of, plant, token_ids

from sae_unlearn import GuardrailError, attach_guardrail, detach_guardrail, list_guardrails


IDS = token_ids(8, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("twice")
    guarded("llama").save_pretrained(root / "guard")
    guarded("llama", threshold=0.6).save_pretrained(root / "higher")
    other = guarded("llama")
    plant(other, seed=5)
    other.save_pretrained(root / "other")
    return root


def test_the_same_guardrail_again_is_refused_and_the_model_is_as_it_was(folders):
    model = attach_guardrail(base_model("llama"), folders / "guard").eval()
    before = logits_of(model, IDS)
    with pytest.raises(GuardrailError, match=r"'default': .*`detach_guardrail\(model, 'default'\)`"):
        attach_guardrail(model, folders / "guard")
    assert [each.name for each in list_guardrails(model)] == ["default"]
    assert torch.equal(logits_of(model, IDS), before)
    bare = detach_guardrail(model)
    assert torch.equal(logits_of(attach_guardrail(bare, folders / "guard").eval(), IDS), before)


def test_it_is_refused_beside_a_lora_and_of_one_that_peft_loaded(folders):
    model = PeftModel.from_pretrained(base_model("llama"), folders / "guard", adapter_name="peft")
    with pytest.raises(GuardrailError, match=r"'peft': .*`detach_guardrail\(model, 'peft'\)`"):
        attach_guardrail(model, folders / "guard")
    with pytest.raises(GuardrailError, match=r"'peft': .*`detach_guardrail\(model, 'peft'\)`"):
        attach_guardrail(model.get_base_model(), folders / "guard")


def test_the_same_weights_with_other_settings_are_warned_of(folders):
    model = attach_guardrail(base_model("llama"), folders / "guard")
    with pytest.warns(UserWarning, match=r"detach_guardrail\(model, 'default'\)"):
        attach_guardrail(model, folders / "higher")
    assert len(list_guardrails(model)) == 2


def test_the_very_one_is_found_behind_another_with_the_same_weights(folders):
    model = attach_guardrail(base_model("llama"), folders / "higher", adapter_name="higher")
    with pytest.warns(UserWarning, match=r"detach_guardrail\(model, 'higher'\)"):
        model = attach_guardrail(model, folders / "guard", adapter_name="guard")
    with pytest.raises(GuardrailError, match=r"'guard': .*`detach_guardrail\(model, 'guard'\)`"):
        attach_guardrail(model, folders / "guard")


def test_under_a_name_that_was_chosen_it_is_warned_of(folders):
    model = attach_guardrail(base_model("llama"), folders / "guard")
    with pytest.warns(UserWarning, match=r"detach_guardrail\(model, 'default'\)"):
        attach_guardrail(model, folders / "guard", adapter_name="second")
    assert len(list_guardrails(model)) == 2


def test_another_guardrail_is_neither(folders):
    model = attach_guardrail(base_model("llama"), folders / "guard")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach_guardrail(model, folders / "other")


def test_pefts_load_adapter_warns(folders):
    model = PeftModel.from_pretrained(base_model("llama"), folders / "guard")
    with pytest.warns(UserWarning, match=r"detach_guardrail\(model, 'default'\)"):
        model.load_adapter(folders / "guard", "again")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has the same weights")
        model.load_adapter(folders / "other", "other")


def test_a_fit_that_is_run_again_warns_and_keeps_what_it_found():
    model = fit()
    with pytest.warns(UserWarning, match="detach_guardrail"):
        again = fit(model=model, adapter_name="again")
    assert len(list_guardrails(again)) == 2
