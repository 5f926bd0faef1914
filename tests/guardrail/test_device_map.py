"""A model that accelerate has spread with `device_map` is fitted and guarded like any other."""

import torch
from fitting import FORGET, config_of, fit, same_fit, tensors, token_rows
from spread import partly_on_disk, spread
from zoo import base_model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_rows(FORGET)[0]])).logits


def test_device_map_auto_gives_the_same_guardrail_and_the_same_logits(tmp_path):
    model = spread(base_model("llama"), tmp_path, "auto")
    usual, fitted = fit(), fit(model)
    assert config_of(fitted).feature_ids == config_of(usual).feature_ids
    if model.device.type == "cpu":
        same_fit(usual, fitted)
        assert torch.equal(logits(fitted), logits(usual))


def test_layers_that_lie_on_disk_are_fitted_and_guarded_all_the_same(tmp_path):
    model, usual = spread(base_model("llama"), tmp_path, partly_on_disk()), fit()
    assert next(model.model.layers[1].parameters()).is_meta
    fitted = fit(model)
    assert config_of(fitted).feature_ids == config_of(usual).feature_ids
    assert config_of(fitted).threshold == config_of(usual).threshold
    for name, tensor in tensors(usual).items():
        torch.testing.assert_close(tensors(fitted)[name], tensor, rtol=0, atol=0)
    assert torch.equal(logits(fitted), logits(usual))
