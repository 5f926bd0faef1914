"""A guardrail beside other guardrails and LoRAs: all stay in force, and each can be detached."""

import re

import pytest
import torch
from attached import assert_untouched, by_hand, logits, tiny_sae
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail, detach_guardrail, guardrail_status, record_firings


def test_a_second_guardrail_joins_the_first_and_both_are_active(folder):
    model = attach_guardrail(base_model("llama"), folder)
    first = logits(model)
    second = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2))
    assert second is model
    assert list(model.peft_config) == ["default", "guardrail"]
    with record_firings(model) as firings:
        both = logits(model)
    assert {f.adapter for f in firings} == {"default", "guardrail"}
    assert not torch.equal(both, first)
    assert detach_guardrail(model, "guardrail") is model
    assert torch.equal(logits(model), first)


def test_a_guardrail_joins_one_that_was_loaded_by_transformers(folder):
    model = base_model("llama")
    model.load_adapter(str(folder))
    first = logits(model)
    both = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="second")
    with record_firings(both) as firings:
        assert not torch.equal(logits(both), first)
    assert {f.adapter for f in firings} == {"default", "second"}


@pytest.mark.parametrize("name", [None, "guardrail", "layers", "clamp", "weight", "1", "sae"])
def test_guardrails_are_saved_whole_whatever_the_others_are_called(name, folder, tmp_path, recwarn):
    """PEFT leaves out of one adapter's file whatever has another's name between its dots."""
    model = attach_guardrail(base_model("llama"), folder)
    model = attach_guardrail(model, by_hand(layer=1), sae=tiny_sae(1), adapter_name=name)
    assert not [warning for warning in recwarn if "Adapter name" in str(warning.message)]
    _, second = model.peft_config
    expected = logits(model)
    model.save_pretrained(tmp_path / "both")
    again = attach_guardrail(base_model("llama"), tmp_path / "both")
    again = attach_guardrail(again, tmp_path / "both" / second, adapter_name=second)
    assert torch.equal(logits(again), expected)
    assert torch.equal(logits(detach_guardrail(again, second)), logits(detach_guardrail(model, second)))


def test_a_second_guardrail_beside_a_lora_leaves_the_first_active(folder):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    plain = logits(lora)
    model = attach_guardrail(lora, folder)
    model = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="second")
    with record_firings(model) as firings:
        logits(model)
    assert {f.adapter for f in firings} == {"guardrail", "second"}
    assert torch.equal(logits(detach_guardrail(model)), plain)


@pytest.mark.parametrize("name", ["layers", "q_proj", "1", "lora_A"])
def test_a_name_for_which_peft_would_lose_the_lora_beside_it_is_refused(folder, name, tmp_path):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    with pytest.raises(GuardrailError, match=rf"^adapter_name='{name}' .*'default'"):
        attach_guardrail(lora, folder, adapter_name=name)
    model = attach_guardrail(lora, folder, adapter_name="topic")
    before = {key for key, _ in lora.named_parameters() if "lora_" in key}
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(before)


def test_a_guardrail_on_a_lora_leaves_the_lora_active_and_is_found_by_name(folder):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    plain = logits(lora)
    model = attach_guardrail(lora, folder)
    assert model is lora
    assert list(model.peft_config) == ["default", "guardrail"]
    assert not torch.equal(logits(model), plain)
    assert detach_guardrail(model, "guardrail") is lora
    assert torch.equal(logits(model), plain)


def test_prompt_learning_is_refused(folder):
    model = get_peft_model(base_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(GuardrailError, match="cannot join PromptTuningConfig"):
        attach_guardrail(model, folder)


def test_of_a_compiled_model_the_model_inside_is_guarded(folder, fitted, tmp_path):
    base = base_model("llama")
    model = attach_guardrail(torch.compile(base, backend="eager"), folder)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), tmp_path / "again")), fitted[1])
    compiled = torch.compile(model, backend="eager")
    both = attach_guardrail(compiled, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="b")
    assert both is model
    assert detach_guardrail(compiled, "b") is compiled
    assert torch.equal(logits(model), fitted[1])
    assert detach_guardrail(compiled) is base
    assert_untouched(base)


def test_what_transformers_loaded_is_detached_and_can_be_loaded_again(folder, fitted, tmp_path):
    model = base_model("llama")
    model.load_adapter(str(folder))
    detach_guardrail(model)
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    model.load_adapter(str(folder))
    assert torch.equal(logits(model), fitted[1])


TAKEN = ["default", "keys", "train"]  # by the other guardrail, and by torch
PATHS = ["a/b", "/a", "a\\b", "a:b", " a", "a\n", "a\u202e"]


@pytest.mark.parametrize("name", [*TAKEN, *PATHS, "a.b", "sae_guardrail_x"])
def test_a_name_that_cannot_be_given_is_refused(name, folder):
    model = attach_guardrail(base_model("llama"), folder)
    before = logits(model)
    with pytest.raises(GuardrailError, match=re.escape(repr(name))):
        attach_guardrail(model, folder, adapter_name=name)
    assert torch.equal(logits(model), before)
    assert list(model.peft_config) == ["default"]


def test_detaching_what_is_not_there_is_refused(folder):
    with pytest.raises(GuardrailError, match="adapter_name=None"):
        detach_guardrail(base_model("llama"))
    with pytest.raises(GuardrailError, match="adapter_name='other'"):
        detach_guardrail(attach_guardrail(base_model("llama"), folder), "other")


def test_detaching_all_gives_back_the_very_model_untouched(folder):
    base = base_model("llama")
    plain, names = logits(base), list(base.state_dict())
    model = attach_guardrail(base, folder)
    model = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="b")
    assert detach_guardrail(model) is base
    assert torch.equal(logits(base), plain)
    assert list(base.state_dict()) == names
    assert_untouched(base)


def test_a_model_whose_adapters_were_all_deleted_and_a_mixed_one_are_refused_by_name(folder):
    emptied = get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    emptied.delete_adapter("default")
    mixed = get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"]), mixed=True)
    for model, match in ((emptied, "get_base_model"), (mixed, "PeftMixedModel")):
        with pytest.raises(GuardrailError, match=match):
            attach_guardrail(model, folder)


def test_after_its_loras_were_deleted_a_model_is_still_guarded_and_can_be_detached(folder):
    model = get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    attach_guardrail(model, folder)
    model.delete_adapter("default")
    assert guardrail_status(model).verdict == "guarded"
    bare = detach_guardrail(model)
    assert guardrail_status(bare).verdict == "unguarded"
