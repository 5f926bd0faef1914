"""What a bundle's LoRA may have in its config, and the true reason where it may not."""

import pytest
import torch
from peft import LoraConfig, PeftModelForCausalLM, get_peft_model
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, save_bundle
from sae_unlearn.guardrail.bundles.lora import check_lora_config


IDS = token_ids(8, 12)


def stored(**fields):
    return LoraConfig(target_modules=["q_proj"]).to_dict() | fields


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_a_lora_without_a_task_type_is_bundled(task_type, tmp_path):
    guarded("llama").save_pretrained(tmp_path / "guard")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type=task_type)
    model = get_peft_model(base_model("llama"), config, adapter_name="lora")
    model = attach_guardrail(model, tmp_path / "guard").eval()
    save_bundle(model, tmp_path / "bundle")
    assert model.peft_config["lora"].task_type == task_type
    again = attach_bundle(base_model("llama"), tmp_path / "bundle").eval()
    assert isinstance(again, PeftModelForCausalLM)
    assert torch.equal(logits_of(again, IDS), logits_of(model, IDS))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS': .*'CAUSAL_LM'"),
        ({"r": 0}, "r=0: .*1 to 4096"),
        ({"lora_dropout": 1.5}, r"lora_dropout=1\.5: "),
        ({"target_modules": "(a+)+"}, r"target_modules='\(a\+\)\+': "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': "),
        ({"modules_to_save": ["lm_head"]}, "replace modules"),
        ({"new_in_peft": True}, "new_in_peft=True: "),
    ],
)
def test_the_reason_is_that_of_the_field(fields, reason):
    with pytest.raises(GuardrailError, match=reason) as caught:
        check_lora_config(stored(**fields), "The config")
    if "target_modules" not in fields:
        assert "hours" not in str(caught.value)


def test_a_new_field_of_peft_that_is_off_is_no_reason():
    assert check_lora_config(stored(new_in_peft=False), "The config").task_type == "CAUSAL_LM"
