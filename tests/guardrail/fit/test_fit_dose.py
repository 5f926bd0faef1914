"""The dose: in units of the feature, of the residual stream, or absolute."""

import pytest
import torch
from fitting import FORGET, SAE, config_of, fit, tensors, token_rows

from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail import guard_layers


def edit_norms(model, texts):
    """Norms of the edit at hot tokens of texts, and of the residual stream."""
    layer, norms = guard_layers(model)[0], []
    _, encoder, decoder = layer.guardrail("default")
    with model.disable_adapter():
        for batch in residual_batches(model.get_base_model(), token_rows(texts), 1, 8):
            content = batch.kept & (batch.input_ids > 1)
            activations = encoder(batch.residual)
            hot = (activations > 0).any(-1) & content
            where = activations > 0 if config_of(model).clamp_mode == "fired" else torch.ones_like(activations).bool()
            norms.append(decoder(activations, where)[hot].norm(dim=-1))
    return torch.cat(norms)


def test_dose_in_units_of_the_feature_is_a_multiple_of_its_mean_active_value():
    model = fit(clamp_scale=3.0, clamp_unit="feature")
    held_out = [row for i, row in enumerate(token_rows(FORGET)) if i % 4 in (0, 3)]
    active = []
    with model.disable_adapter():
        for batch in residual_batches(model.get_base_model(), held_out, 1, 8):
            active.append(SAE.encode(batch.residual[batch.kept & (batch.input_ids > 1)]))
    active = torch.cat(active)[:, [*config_of(model).feature_ids]]
    means = active.sum(0) / (active > 0).sum(0)
    assert config_of(model).calibration["outlier_tokens_left_out"] == 0
    torch.testing.assert_close(tensors(model)["clamp"], -3.0 * means, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("clamp_mode", ["fired", "all"])
@pytest.mark.parametrize("scale", [1.2, 2.0])
def test_dose_in_units_of_the_residual_gives_an_edit_of_that_norm(scale, clamp_mode):
    model = fit(clamp_scale=scale, clamp_unit="residual", clamp_mode=clamp_mode)
    norms = edit_norms(model, [text for i, text in enumerate(FORGET) if i % 4 == 1])
    median = config_of(model).calibration["residual_norm_median"]
    assert float(norms.square().mean().sqrt() / median) == pytest.approx(scale, rel=1e-3)
    assert config_of(model).calibration["edit_to_residual"] == pytest.approx(scale, rel=1e-3)


def test_absolute_dose_is_one_value_for_all():
    for given in ({"clamp_value": -500.0}, {"clamp_scale": 500.0, "clamp_unit": "absolute"}):
        model = fit(**given)
        assert tensors(model)["clamp"].tolist() == [-500.0] * 5
        assert config_of(model).clamp_value == -500.0
        assert config_of(model).calibration["dose"] == {"unit": "absolute", "scale": 500.0}
