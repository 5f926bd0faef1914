"""Compiled code of a guarded model is made again when its guardrails change, and that of no other model."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import get_peft_model
from torch import nn
from zoo import base_model, guarded, logits_of, plant, planted_config, token_ids

from sae_unlearn import detach_guardrail
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.runtime import compiled


IDS = token_ids(2, 9)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x):
        for layer in self.inner:
            x = layer(x)
        return x


class Counting:
    """A backend of `torch.compile` that counts the graphs it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, examples):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counting():
    torch._dynamo.reset()
    compiled._is_noticed()  # it compiles
    yield Counting()
    torch._dynamo.reset()


@pytest.fixture
def no_reset(counting, monkeypatch):
    def refuse():
        raise AssertionError("compiled code of all models was dropped")

    monkeypatch.setattr(torch._dynamo, "reset", refuse)
    yield
    monkeypatch.undo()


def attach(bare, name="default"):
    model = get_peft_model(bare, planted_config(), adapter_name=name)
    plant(model)
    return model


@pytest.mark.usefixtures("no_reset")
def test_attaching_and_detaching_compiles_this_model_again_and_no_other(counting):
    bare, other, small = base_model("llama"), base_model("llama"), Small()
    ours = torch.compile(bare, backend=counting)
    theirs, tiny = torch.compile(other.model.norm, backend=counting), torch.compile(small, backend=counting)
    hidden, x = torch.randn(1, 2, other.config.hidden_size), torch.randn(2, 3)
    plain = logits_of(ours, IDS)
    theirs(hidden), tiny(x)
    for _ in range(2):
        before = counting.graphs
        model = attach(bare)
        theirs(hidden), tiny(x)
        assert counting.graphs == before
        expected = logits_of(model, IDS)
        torch.testing.assert_close(logits_of(ours, IDS), expected)
        assert not torch.allclose(expected, plain)
        assert counting.graphs > before
        before = counting.graphs
        detach_guardrail(model)
        theirs(hidden), tiny(x)
        assert counting.graphs == before
        torch.testing.assert_close(logits_of(ours, IDS), plain)


@pytest.mark.usefixtures("no_reset")
def test_a_twin_of_the_model_is_not_compiled_again(counting):
    bare, twin = base_model("llama"), base_model("llama")
    ours, theirs = torch.compile(bare, backend=counting), torch.compile(twin, backend=counting)
    plain = logits_of(ours, IDS)
    torch.testing.assert_close(logits_of(theirs, IDS), plain)
    model = attach(bare)
    before = counting.graphs
    torch.testing.assert_close(logits_of(theirs, IDS), plain)
    assert counting.graphs == before
    torch.testing.assert_close(logits_of(ours, IDS), logits_of(model, IDS))


@pytest.mark.slow
@pytest.mark.usefixtures("no_reset")
def test_many_guardrails_in_turn_do_not_reach_the_limit_of_the_compiler(counting):
    bare = base_model("llama")
    ours = torch.compile(bare, backend=counting, fullgraph=True)
    plain = logits_of(ours, IDS)
    for _ in range(12):
        model = attach(bare)
        torch.testing.assert_close(logits_of(ours, IDS), logits_of(model, IDS))
        detach_guardrail(model)
        torch.testing.assert_close(logits_of(ours, IDS), plain)


def modules_of(bare):
    place = find_decoder_layers(bare)
    return [bare, place.backbone, place.layers[planted_config().layer]]


def by_a_function(layer):
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)


def by_accelerate(layer):
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", io_same_device=True))


OWN_FORWARDS = [by_a_function, by_accelerate]


@pytest.mark.usefixtures("no_reset")
@pytest.mark.parametrize("set_forward", OWN_FORWARDS)
def test_a_module_with_a_forward_of_its_own_is_compiled_again_and_no_other(set_forward, counting):
    bare, other = base_model("llama"), base_model("llama")
    layer = modules_of(bare)[2]
    set_forward(layer)
    found = layer.forward
    ours, theirs = torch.compile(bare, backend=counting), torch.compile(other, backend=counting)
    plain = logits_of(ours, IDS)
    torch.testing.assert_close(logits_of(theirs, IDS), plain)
    for _ in range(2):
        before = counting.graphs
        model = attach(bare)
        torch.testing.assert_close(logits_of(theirs, IDS), plain)
        assert counting.graphs == before
        assert inspect.signature(layer.forward) == inspect.signature(found)
        expected = logits_of(model, IDS)
        torch.testing.assert_close(logits_of(ours, IDS), expected)
        assert not torch.allclose(expected, plain)
        assert counting.graphs > before
        before = counting.graphs
        detach_guardrail(model)
        assert layer.forward is found
        torch.testing.assert_close(logits_of(theirs, IDS), plain)
        assert counting.graphs == before
        torch.testing.assert_close(logits_of(ours, IDS), plain)


@pytest.mark.usefixtures("no_reset")
@pytest.mark.parametrize("set_forward", OWN_FORWARDS)
def test_a_forward_that_was_set_under_a_guardrail_runs_without_it_afterwards(set_forward, counting):
    bare = base_model("llama")
    plain = logits_of(bare, IDS)
    model = attach(bare)
    set_forward(modules_of(bare)[2])
    ours = torch.compile(bare, backend=counting)
    torch.testing.assert_close(logits_of(ours, IDS), logits_of(model, IDS))
    detach_guardrail(model)
    torch.testing.assert_close(logits_of(ours, IDS), plain)


def test_a_copy_of_a_module_with_a_forward_of_its_own_calls_the_copy():
    bare = base_model("llama")
    by_accelerate(modules_of(bare)[2])
    copied = copy.deepcopy(attach(bare)).eval()
    layer = modules_of(copied.get_base_model())[2]
    seen = []
    layer.mlp.register_forward_hook(lambda *call: seen.append(1))
    torch.testing.assert_close(logits_of(copied, IDS), logits_of(guarded("llama").eval(), IDS))
    assert seen == [1]


def test_where_compiled_code_would_not_notice_it_is_refused(monkeypatch):
    bare = base_model("llama")
    plain = logits_of(bare, IDS)
    monkeypatch.setattr(compiled, "_is_noticed", lambda: False)
    monkeypatch.setattr(compiled, "_has_compiled", lambda: True)
    with pytest.raises(GuardrailUnsupported, match=f"torch={re.escape(torch.__version__)}"):
        get_peft_model(bare, planted_config())
    assert [module for module in bare.modules() if "forward" in vars(module) or module._forward_hooks] == []
    assert torch.equal(logits_of(bare, IDS), plain)
    monkeypatch.setattr(compiled, "_has_compiled", lambda: False)  # nothing runs without the guardrail
    model = attach(base_model("llama"))
    monkeypatch.setattr(compiled, "_has_compiled", lambda: True)
    with pytest.warns(UserWarning, match=f"torch={re.escape(torch.__version__)}"):
        detach_guardrail(model)


@pytest.mark.parametrize("copied", [None, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_what_is_detached_leaves_no_forward_behind(copied):
    model = guarded("llama") if copied is None else copied(guarded("llama"))
    bare = model.get_base_model()
    for module in modules_of(bare):
        assert module.forward.__self__ is module
        assert inspect.signature(module.forward) == inspect.signature(type(module).forward.__get__(module))
    detach_guardrail(model)
    assert [module for module in bare.modules() if "forward" in vars(module)] == []
