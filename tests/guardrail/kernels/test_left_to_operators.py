"""Tokens that the step on a CPU leaves to torch's operators."""

import pytest
import torch
from decoding import Decoding
from step_cases import LEFT_TO_OPERATORS, generated, two_guardrails
from transformers import StaticCache
from zoo import guarded, planted_config, token_ids, with_cache

from sae_unlearn.guardrail.kernels import cpu_step as host
from sae_unlearn.guardrail.kernels import dispatch as step_choice


CPU = torch.device("cpu")


def test_a_layer_of_which_one_guardrail_is_left_to_the_operators_is_left_to_them_whole(steps):
    model = two_guardrails()
    model.peft_config["second"].action = "record"
    generated(model)
    assert steps == []


@pytest.mark.parametrize("fields", LEFT_TO_OPERATORS.values(), ids=LEFT_TO_OPERATORS)
def test_what_it_does_not_compute_is_left_to_the_operators(fields, steps):
    generated(guarded("llama", **fields))
    assert steps == []


def test_prompts_and_static_caches_are_left_to_the_operators(steps):
    model = guarded("llama")
    model(input_ids=token_ids(2, 6), use_cache=True)
    Decoding(model, "static").step()
    model(input_ids=token_ids(2, 1), **with_cache(model, StaticCache(config=model.config, max_cache_len=8)))
    assert steps == []


def test_what_others_watch_or_float32_cannot_hold_is_left_to_the_operators(monkeypatch):
    hidden, config = torch.zeros(2, 1, 32), planted_config()

    def chosen(hidden, home=CPU):
        return step_choice.step_for(config, hidden, home)

    assert chosen(hidden) is host.host_step
    assert chosen(hidden.clone().requires_grad_()) is None
    assert chosen(hidden.double()) is None
    assert chosen(hidden.as_subclass(type("Own", (torch.Tensor,), {}))) is None
    assert chosen(hidden, None) is None
    assert chosen(hidden, torch.device("meta")) is None
    assert chosen(hidden.expand(2, 2, 32)) is None
    assert chosen(hidden[:1].expand(host.LARGEST // config.num_features, 1, 32)) is host.host_step
    assert chosen(hidden[:1].expand(host.LARGEST // config.num_features + 1, 1, 32)) is None
    monkeypatch.setattr(torch._C, "_get_tracing_state", lambda: object())
    assert chosen(hidden) is None


@pytest.mark.parametrize("change", ["trained", "doubled", "strided"])
def test_weights_that_it_cannot_read_as_they_lie_are_left_to_the_operators(change, steps):
    model = guarded("llama")
    guard = model.get_base_model().model.layers[1].guardrail
    _, encoder, decoder = guard.guardrail("default")
    if change == "trained":
        encoder.weight.requires_grad_()
    elif change == "doubled":
        encoder.double(), decoder.double()
    else:
        encoder.weight.data = encoder.weight.data.T.contiguous().T
    Decoding(model).step()
    assert steps == []
