"""A model that accelerate has spread with `device_map` is fitted, guarded and measured like any other."""

import torch
from test_fit import FORGET, config_of, fit, same_fit, tensors, token_rows
from transformers import AutoModelForCausalLM
from zoo import base_model


def spread(folder, device_map):
    base_model("llama").save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=str(folder / "off"))


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_rows(FORGET)[0]])).logits


def test_device_map_auto_gives_the_same_guardrail_and_the_same_logits(tmp_path):
    model = spread(tmp_path, "auto")
    usual, fitted = fit(), fit(model)
    assert config_of(fitted).feature_ids == config_of(usual).feature_ids
    if model.device.type == "cpu":
        same_fit(usual, fitted)
        assert torch.equal(logits(fitted), logits(usual))


def test_layers_that_lie_on_disk_are_fitted_and_guarded_all_the_same(tmp_path):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i in (1, 3) else "cpu" for i in range(4)}
    model, usual = spread(tmp_path, places), fit()
    assert next(model.model.layers[1].parameters()).is_meta
    fitted = fit(model)
    assert config_of(fitted).feature_ids == config_of(usual).feature_ids
    assert config_of(fitted).threshold == config_of(usual).threshold
    for name, tensor in tensors(usual).items():
        torch.testing.assert_close(tensors(fitted)[name], tensor, rtol=0, atol=0)
    assert torch.equal(logits(fitted), logits(usual))
