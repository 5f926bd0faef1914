"""The list of decoder layers is found wherever a model keeps it, or the model is refused by name."""

import pytest
import transformers
from peft import get_peft_model
from torch import nn
from zoo import LAYERS, base_model, padded, plant, planted_config, token_ids

from sae_unlearn import GuardrailError, SAEGuardrailConfig, attach_guardrail
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.errors import UnlearnError


def test_a_decoder_that_is_not_the_backbone_is_passed_over():
    """ModernBERT's `decoder` is its head, which transformers' `get_decoder` gives."""
    model = base_model("modernbert_decoder")
    assert isinstance(model.get_decoder(), nn.Linear)
    place = find_decoder_layers(model)
    assert (place.name, place.backbone) == ("model.layers", model.model)


@pytest.mark.parametrize(
    "get_decoder",
    [
        lambda self: None,
        lambda self: self.get_output_embeddings(),
        lambda self: nn.ModuleList([nn.Linear(2, 2)] * LAYERS),
        lambda self: self.no_such_part,
        lambda self: (_ for _ in ()).throw(NotImplementedError),
    ],
    ids=["none", "the head", "no part of the model", "an error", "not implemented"],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_that_says_nothing_does_not_decide(monkeypatch, name, get_decoder):
    model = base_model(name)
    expected = find_decoder_layers(model)
    monkeypatch.setattr(type(model), "get_decoder", get_decoder)
    assert find_decoder_layers(model) == expected


def test_without_a_base_model_all_of_it_is_searched(monkeypatch):
    model = base_model("llama")
    expected = find_decoder_layers(model)
    monkeypatch.setattr(type(model), "get_decoder", lambda self: None)
    monkeypatch.setattr(type(model), "base_model", None)
    assert find_decoder_layers(model) == expected


def test_of_two_lists_the_one_with_a_layers_name_is_taken():
    model = base_model("llama")
    model.model.register_module("cross_attentions", nn.ModuleList([nn.Identity()] * LAYERS))
    assert find_decoder_layers(model).name == "model.layers"


def test_a_model_without_a_list_of_layers_is_refused():
    """XLM keeps its attentions and its feed-forward networks in lists of their own: none gives the residual stream."""
    config = transformers.XLMConfig(vocab_size=97, emb_dim=32, n_layers=4, n_heads=4, causal=True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnlearnError, match="got attentions, layer_norm1"):
        find_decoder_layers(model)
    base = {"hidden_size": 32, "num_layers": 4}
    config = SAEGuardrailConfig(layer=1, feature_ids=[1], threshold=0.5, clamp_value=-1.0, base_model=base)
    with pytest.raises(GuardrailError):
        attach_guardrail(model, config)


def test_a_config_without_a_number_of_layers_is_refused():
    model = base_model("llama")
    model.config.__dict__["num_hidden_layers"] = None
    with pytest.raises(UnlearnError, match="num_hidden_layers=None"):
        find_decoder_layers(model)


def test_a_guardrail_works_there():
    model = get_peft_model(base_model("modernbert_decoder"), planted_config())
    plant(model)
    ids = padded([token_ids(1, 12)[0], token_ids(1, 7, seed=1)[0]])
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape == (2, 15)
