"""Measuring a model without its adapters changes nothing about it."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_topic import tiny_parts, topic_texts
from zoo import base_model, token_ids

from benchmarks.representation.states import entity_states
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.evaluation.base_model import without_adapters
from sae_unlearn.evaluation.metrics.text import row_divergences


LORA = LoraConfig(
    r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM"
)


def state(model):
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    return flags, [m.disable_adapters for m in model.modules() if hasattr(m, "disable_adapters")], model.active_adapters


def measured(model, tokenizer, how):
    if how == "block":
        with without_adapters(model):
            pass
    elif how == "kl":
        row_divergences(model, tokenizer, topic_texts("retain", 2, words=5))
    else:
        entity_states(model, tokenizer, [Entity("w70 w5", "thing")], 1, adapters=False)


@pytest.mark.parametrize("how", ["block", "kl", "states"])
@pytest.mark.parametrize("frozen", ["all", "lora_A", "none"])
def test_what_is_frozen_stays_frozen(how, frozen):
    bare, tokenizer, _ = tiny_parts()
    model = get_peft_model(bare, LORA)
    for name, parameter in model.named_parameters():
        if frozen == "all" or frozen in name:
            parameter.requires_grad_(False)
    before = state(model)
    measured(model, tokenizer, how)
    assert state(model) == before


def test_what_is_disabled_stays_disabled_and_an_error_leaves_no_trace():
    model = get_peft_model(base_model("llama"), LORA)
    model.base_model.disable_adapter_layers()
    before = state(model)
    with adapters_off(model), pytest.raises(ZeroDivisionError), adapters_off(model):
        _ = 1 / 0
    assert state(model) == before


@pytest.mark.parametrize("config", [LORA, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)])
def test_inside_it_is_the_base_model(config):
    torch.manual_seed(0)
    expected = base_model("llama").eval()(token_ids(2, 6)).logits
    torch.manual_seed(0)
    model = get_peft_model(base_model("llama"), config).eval()
    with torch.no_grad():
        assert model(token_ids(2, 6)).logits.shape != expected.shape or not torch.equal(
            model(token_ids(2, 6)).logits, expected
        )
        with adapters_off(model):
            assert torch.equal(model(token_ids(2, 6)).logits, expected)
