"""Architectures with a cache, layers or checkpoints of their own: guarded token by token, or refused by name."""

import pytest
import torch
import transformers
from architecture_case import GREEDY
from peft import get_peft_model
from zoo import guarded, plant, planted_config, token_ids, with_cache

from sae_unlearn import GuardrailNotReady, record_firings
from sae_unlearn.backbone import checkpointing
from sae_unlearn.backbone.call_arguments import cache_of
from sae_unlearn.errors import GuardrailUnsupported, UnlearnError


_SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "pad_token_id": 0, "eos_token_id": 96}
OF_THEIR_OWN = {
    "minimax": (
        lambda: transformers.MiniMaxConfig(**_SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        GuardrailNotReady,
        "MiniMaxCache overrides how to count its layers.*use_cache=False",
    ),
}


@pytest.mark.parametrize("architecture", OF_THEIR_OWN)
def test_a_cache_that_can_hold_no_history_is_refused_by_name(architecture):
    config, error, message = OF_THEIR_OWN[architecture]
    model = get_peft_model(transformers.AutoModelForCausalLM.from_config(config()).eval(), planted_config())
    plant_uncached(model)
    with torch.no_grad(), pytest.raises(error, match=message):
        model.generate(input_ids=token_ids(1, 5), **GREEDY)
    with record_firings(model) as firings, torch.no_grad():
        model.generate(input_ids=token_ids(1, 5), use_cache=False, **GREEDY)
    assert len(firings) == GREEDY["max_new_tokens"]


def test_a_model_whose_layers_are_no_modules_is_refused():
    """A guardrail on XLM's attentions would take what they add for the residual stream."""
    config = transformers.XLMConfig(vocab_size=97, emb_dim=32, n_layers=4, n_heads=4, causal=True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnlearnError, match="got attentions"):
        get_peft_model(model, planted_config())


def test_a_recurrent_cache_goes_on_token_by_token_and_refuses_several_at_once():
    model, ids = guarded("mamba", gate_scope="prefix"), token_ids(1, 8)
    with record_firings(model) as whole, torch.no_grad():
        expected = model(input_ids=ids).logits
    with record_firings(model) as parts, torch.no_grad():
        out = model(input_ids=ids[:, :5], use_cache=True)
        with pytest.raises(GuardrailUnsupported, match=r"^(cache|past_key_values): .*recurrent"):
            model(input_ids=ids[:, 5:], use_cache=True, **with_cache(model, cache_of(out)))
        for token in ids[:, 5:].split(1, dim=1):
            out = model(input_ids=token, use_cache=True, **with_cache(model, cache_of(out)))
    torch.testing.assert_close(out.logits[:, -1], expected[:, -1], atol=1e-5, rtol=1e-5)
    assert [(f.statistic, f.tokens) for f in parts] == [(f.statistic, f.tokens) for f in whole]


def test_checkpoints_that_run_hooks_again_are_refused_where_a_guardrail_is_in_force(monkeypatch):
    """As a layer's are before transformers 5.23."""
    monkeypatch.setattr(checkpointing, "HOOKS_OUTSIDE", False)
    model, ids = guarded("llama"), token_ids(1, 6)
    model.get_base_model().gradient_checkpointing_enable()
    model(input_ids=ids)  # nothing is checkpointed while it is evaluated
    model.train()
    with torch.no_grad():
        model(input_ids=ids)
    with pytest.raises(GuardrailUnsupported, match=r"^gradient_checkpointing=True: expected transformers"):
        model(input_ids=ids)
    with model.disable_adapter():
        model(input_ids=ids)


def plant_uncached(model):
    model.config.use_cache = False
    plant(model)
    model.config.use_cache = True
