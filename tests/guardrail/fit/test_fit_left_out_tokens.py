"""Tokens that a fit leaves out: special ones, and outliers of the residual stream."""

import copy

import pytest
import torch
from fitting import FORGET, RETAIN, as_token_rows, config_of, fit, random_sae, same_fit, tensors
from zoo import BOS, EOS, PAD, base_model

from sae_unlearn import record_firings


def test_special_tokens_have_no_part(usual):
    """BOS, EOS and PAD inside the text change neither features nor dose nor threshold."""
    model = base_model("llama")
    for layer in model.model.layers:  # a model without attention: tokens do not see one another
        layer.self_attn.o_proj.weight.data.zero_()
    plain = fit(copy.deepcopy(model), forget=as_token_rows(FORGET), retain=as_token_rows(RETAIN))
    strewn = [
        [{"input_ids": [*row["input_ids"][:4], EOS, PAD, *row["input_ids"][4:], EOS]} for row in as_token_rows(texts)]
        for texts in (FORGET, RETAIN)
    ]
    same_fit(plain, fit(copy.deepcopy(model), forget=strewn[0], retain=strewn[1]), exact=False)
    assert config_of(plain).tokens.special_ids == (PAD, BOS, EOS)


def model_with_an_outlying_token():
    """A token that no text holds, 95, has fifty times the norm, and tokens do not see one another."""
    model = base_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[95] *= 50
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize(
    ("every", "asked", "left_out"),
    [(1, {}, True), (4, {}, False), (1, {"evidence": "any"}, True), (1, {"preset": "faithful"}, False)],
)
def test_the_gate_leaves_out_outlier_tokens_where_most_rows_have_one(every, asked, left_out):
    texts = [
        [
            {"input_ids": [95, *row["input_ids"]] if i % every == 0 else row["input_ids"]}
            for i, row in enumerate(as_token_rows(some))
        ]
        for some in (FORGET, RETAIN)
    ]
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    model = fit(model_with_an_outlying_token(), *texts, sae=sae, **asked)
    config = config_of(model)
    assert (config.feature_evidence is None) == bool(asked)
    usual = config.calibration["residual_norm_median"]
    assert config.tokens.outlier_norm == (pytest.approx(2 * usual) if left_out else None)
    row = torch.tensor([[95, *as_token_rows(FORGET)[0]["input_ids"]]])
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=row)
        model(input_ids=row[:, 1:])
    with_it, without = firings
    assert with_it.tokens == without.tokens + 1
    if "preset" not in asked:  # as published, a row's first token is never hot
        assert (with_it.evidence == without.evidence) is left_out


def test_outlier_tokens_have_no_part_in_scores_and_dose():
    model = model_with_an_outlying_token()
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    plain = fit(copy.deepcopy(model), forget=as_token_rows(FORGET), sae=sae)
    strewn = [{"input_ids": [*row["input_ids"], 95, 95, 95]} for row in as_token_rows(FORGET)]
    outliers = fit(copy.deepcopy(model), forget=strewn, sae=sae)
    assert config_of(plain).calibration["outlier_tokens_left_out"] == 0
    assert config_of(outliers).calibration["outlier_tokens_left_out"] == 3 * 16
    assert config_of(outliers).feature_ids == config_of(plain).feature_ids
    torch.testing.assert_close(tensors(outliers)["clamp"], tensors(plain)["clamp"])
