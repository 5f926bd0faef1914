"""A guardrail's edit lowers what it guards: no feature is taken that its own row of the decoder would raise."""

import copy

import pytest
import torch
from fitting import SAE, config_of, fit
from zoo import base_model, guarded, logits_of, planted_config, random_sae, token_ids

from sae_unlearn import GuardrailError, GuardrailNotReady, attach_guardrail, guardrail_status
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.weights import check_lowers


def turned_round(sae, ids):
    """The SAE with the decoder rows of some features negated."""
    sae = copy.deepcopy(sae)
    with torch.no_grad():
        sae.W_dec[ids] *= -1
    return sae


def test_a_fit_takes_no_feature_that_its_edit_would_raise(usual):
    best = config_of(usual).feature_ids[0]
    found = config_of(fit(sae=turned_round(SAE, [best]))).feature_ids
    assert best not in found
    assert len(found) == len(config_of(usual).feature_ids)


def test_a_feature_that_its_edit_would_raise_is_refused_by_name():
    with pytest.raises(GuardrailError, match=r"^decoder\.weight .* -\d\S* .*feature 1\b"):
        fit(sae=turned_round(SAE, [8]), features=[3, 8, 21])
    config = planted_config(feature_ids=[3, 8], clamp_value=-6.0)
    with pytest.raises(GuardrailError, match=r"^decoder\.weight .* feature 0\b"):
        attach_guardrail(base_model("llama"), config, sae=turned_round(random_sae(40), [3]))


def test_a_decoder_that_is_turned_round_on_the_model_stops_the_call():
    model = guarded("llama")
    logits_of(model, token_ids(2, 8))
    with torch.no_grad():
        guard_layers(model)[0].guardrail("default").decoder.weight.neg_()
    assert guardrail_status(model).verdict == "raises"
    with pytest.raises(GuardrailNotReady, match=r"^decoder\.weight .*'default'.* feature \d"):
        logits_of(model, token_ids(2, 8))


def test_the_edit_need_not_lie_along_the_encoder():
    """Untied SAEs pass however small the angle is that encoder and decoder share; at a right angle they do not."""
    encoder = torch.eye(3, 8)
    decoder = encoder.roll(1, dims=1) + 1e-3 * encoder
    check_lowers(encoder, decoder, "the SAE")
    with pytest.raises(GuardrailError, match=r"^decoder\.weight .*got 0\b"):
        check_lowers(encoder, encoder.roll(4, dims=1), "the SAE")
