"""Base models that are fitted: of other precision, spread, offloaded, quantised, and of other architectures."""

import copy

import pytest
import torch
from fitting import FORGET, config_of, fit, same_fit, tensors, token_rows
from tiny_topic import topic_sae
from transformers import AutoModelForCausalLM
from zoo import base_model

from sae_unlearn import attach_guardrail, record_firings


def test_a_bfloat16_base_is_fitted_in_full_precision_sums(usual):
    model = fit(base_model("llama").to(torch.bfloat16))
    assert len(set(config_of(model).feature_ids) & set(config_of(usual).feature_ids)) >= 4
    assert all(p.dtype == torch.float32 for p in tensors(model).values())
    with record_firings(model) as firings, torch.no_grad():
        model.generate(input_ids=torch.tensor([token_rows(FORGET)[2]]), max_new_tokens=4, do_sample=False)
    assert firings[0].tokens > 10


def test_a_model_with_a_device_map(usual, tmp_path):
    base_model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")
    same_fit(usual, fit(model))


def test_an_offloaded_model(usual):
    from accelerate import cpu_offload

    model = base_model("llama")
    cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).is_meta
    same_fit(usual, fit(model))


def test_a_quantised_base(usual, tmp_path):
    torchao = pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    assert torchao
    base_model("llama").save_pretrained(tmp_path)
    quantised = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised)
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ != "Parameter"
    guarded = fit(model)
    assert len(set(config_of(guarded).feature_ids) & set(config_of(usual).feature_ids)) >= 4
    guarded.save_pretrained(tmp_path / "guard")
    again = attach_guardrail(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "guard")
    with record_firings(again) as firings, torch.no_grad():
        again(input_ids=torch.tensor([token_rows(FORGET)[2]]))
        guarded(input_ids=torch.tensor([token_rows(FORGET)[2]]))
    assert len(firings) == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma3", "mixtral", "falcon_h1", "phi"])
def test_other_architectures_are_fitted_and_fire_on_the_topic(architecture):
    model = base_model(architecture)
    options = {"num_features": 20, "ratio_percentile": 99.0, "threshold_percentile": 75.0}
    counted = config_of(fit(copy.deepcopy(model), sae=topic_sae(model), evidence="any", **options)).calibration
    assert counted["fire_rate_forget"]["rate"] > counted["fire_rate_retain"]["rate"]
    weighed = config_of(fit(model, sae=topic_sae(model), **options)).calibration
    assert weighed["fire_rate_forget"]["rate"] > 0
    assert weighed["auroc"] > 0.6
