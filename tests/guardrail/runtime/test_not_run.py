"""Passes that go by a guardrail raise, in compiled code too; and calls of several threads are kept apart there."""

import threading
from collections import Counter

import pytest
import torch
from torch import nn
from zoo import EOS, LayerTap, base_model, guarded, plant, planted_config, token_ids, with_cache

from sae_unlearn import GuardrailNotReady, record_firings
from sae_unlearn.backbone.call_arguments import cache_of
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.runtime.call_context import CALL, INPUTS, noted


IDS = token_ids(6, 12)
LAYER = 1  # of the guardrail that `guarded` plants


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


class Around(nn.Module):
    """A layer inside of another module."""

    def __init__(self, inner, runs):
        super().__init__()
        self.inner, self.runs = inner, runs

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, hidden, *args, **kwargs):
        return self.inner.forward(hidden, *args, **kwargs) if self.runs else hidden


def wrap(model, runs):
    layers = model.get_base_model().model.layers if hasattr(model, "get_base_model") else model.model.layers
    layers[LAYER] = Around(layers[LAYER], runs)
    return model


@pytest.mark.parametrize("runs", [True, False], ids=["past its hooks", "not at all"])
def test_a_layer_in_its_place_that_is_not_run_raises(runs):
    model = wrap(guarded("llama"), runs)
    with pytest.raises(GuardrailNotReady, match=r"^Layer 1 .*`forward`"):
        logits(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(wrap(base_model("llama"), runs)))


def hooks_taken_off(model):
    model.get_base_model().model.layers[LAYER]._forward_hooks.clear()


def replaced(model):
    model.get_base_model().model.layers[LAYER] = base_model("llama").model.layers[LAYER]


def cut_short(model):
    model.get_base_model().config.num_hidden_layers = LAYER


def compiled_cases():
    """Each way in one order in the full tier, and both orders of each way nightly."""
    for turn, spoil in enumerate((hooks_taken_off, replaced, cut_short)):
        for before in (True, False):
            mark = pytest.mark.slow if before == (turn % 2 == 0) else pytest.mark.nightly
            yield pytest.param(spoil, before, id=f"{spoil.__name__}-{'after' if before else 'before'}", marks=mark)


@pytest.mark.parametrize(("spoil", "compiled_before"), compiled_cases())
def test_compiled_code_that_goes_by_a_guardrail_raises(spoil, compiled_before):
    torch._dynamo.reset()
    model = guarded("llama")
    compiled = torch.compile(model, backend="eager")
    if compiled_before:
        assert not torch.allclose(logits(compiled), logits(base_model("llama")), atol=1e-2)
    spoil(model)
    with pytest.raises(GuardrailNotReady):
        logits(compiled)


def test_an_error_inside_of_a_pass_stays_the_error_that_it_was():
    model = guarded("llama")

    def fail(*_):
        raise KeyError("somebody else's")

    handle = model.get_base_model().model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="somebody else's"):
        logits(model)
    handle.remove()
    assert noted(INPUTS) is noted(CALL) is None
    torch.testing.assert_close(logits(model), logits(guarded("llama")))


def requests(model):
    """Two that differ in their padding only: of the one all tokens count, of the other the last, which is not hot."""
    pool = token_ids(400, 16, seed=3)
    with LayerTap(model, LAYER) as tap:
        logits(model, pool)
    hot = (guard_layers(model)[0].guardrail("default").encoder(tap.before[0]) != 0).any(-1)
    ids = pool[(hot.float().mean(1) > 0.5) & ~hot[:, -1]][:2]
    last = torch.zeros_like(ids)
    last[:, -1] = 1
    return ids, {16: torch.ones_like(ids), 1: last}


@pytest.mark.slow
def test_threads_in_one_compiled_model_are_kept_apart_where_its_graph_breaks():
    """Recording breaks the graph between the hooks of the model and those of the guarded layer."""
    torch._dynamo.reset()
    model = guarded("llama")
    ids, masks = requests(model)
    expected = {tokens: logits(model, ids, attention_mask=mask) for tokens, mask in masks.items()}
    compiled, found, rounds = torch.compile(model, backend="eager"), [], 12
    together = threading.Barrier(4)

    def run(tokens):
        with record_firings(model) as firings:
            right = torch.allclose(logits(compiled, ids, attention_mask=masks[tokens]), expected[tokens], atol=1e-5)
        found.append((tokens, right, tuple(firing.tokens for firing in firings)))  # a counter could lose one

    for _ in range(2):  # compile while there is one thread, and once more for those that have made no call
        first = threading.Thread(target=lambda: [run(tokens) for tokens in masks])
        first.start()
        first.join()
    found.clear()

    def work(tokens):
        try:
            for _ in range(rounds):
                together.wait()  # so that passes overlap, however long it takes to compile for several recordings
                run(tokens)
        except BaseException:
            together.abort()
            raise

    threads = [threading.Thread(target=work, args=(tokens,)) for tokens in (16, 1, 16, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(found) == {(16, True, (16, 16)): 2 * rounds, (1, True, (1, 1)): 2 * rounds}


@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside one that goes on"])
def test_a_recurrent_cache_with_tokens_that_went_by_a_resting_guardrail_is_refused(other):
    """Such a cache does not know how many tokens it holds."""
    model = guarded("mamba")
    if other:
        model.add_adapter("other", planted_config(layer=LAYER))
        plant(model, "other", seed=7)
        model.base_model.set_adapter(["default", "other"])
    with torch.no_grad():
        cache = cache_of(model(input_ids=IDS[:, :6], use_cache=True))
        cache = cache_of(model(input_ids=IDS[:, 6:7], use_cache=True, **with_cache(model, cache)))
        if other:
            model.base_model.set_adapter(["other"])
            model(input_ids=IDS[:, 7:8], use_cache=True, **with_cache(model, cache))
            model(input_ids=IDS[:, 8:9], use_cache=True, **with_cache(model, cache))
            model.base_model.set_adapter(["default", "other"])
        else:
            with model.disable_adapter():
                model(input_ids=IDS[:, 7:8], use_cache=True, **with_cache(model, cache))
        with pytest.raises(GuardrailNotReady, match=r"cache .*'default' \(layer 1\)"):
            model(input_ids=IDS[:, 9:10], use_cache=True, **with_cache(model, cache))


def test_a_refusal_in_a_call_to_the_backbone_alone_is_not_told_to_the_next():
    model = guarded("llama", action="refuse", refusal_ids=[5, 6, EOS], threshold=0.2)
    backbone = model.get_base_model().model
    found = logits(model)
    with pytest.raises(GuardrailNotReady, match='action="refuse"'):
        backbone(input_ids=IDS)
    assert (noted(CALL), noted(INPUTS)) == (None, None)
    assert torch.equal(logits(model), found)
    assert (noted(CALL), noted(INPUTS)) == (None, None)
