"""A pass that runs inside of another leaves its notes as they were; and notes that are gone are an error."""

import re
from contextlib import nullcontext

import pytest
import torch
from zoo import EOS, base_model, guarded, token_ids

from sae_unlearn import GuardrailNotReady, record_firings
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.runtime import call_context as pass_notes
from sae_unlearn.guardrail.runtime.call_context import CALL, INPUTS, OUTSIDE, note, noted
from sae_unlearn.guardrail.runtime.hooks import LOST


IDS = token_ids(6, 12)
OTHER = token_ids(3, 9, seed=4)
REFUSING = {"action": "refuse", "refusal": "w5 w6", "refusal_ids": [5, 6, EOS], "threshold": 0.2}


def layers_of(model):
    return model.get_base_model().model.layers


@torch.no_grad()
def logits(model, ids=IDS, **inputs):
    return model(input_ids=ids, **inputs).logits


JUDGES = {
    "a model": lambda judge: logits(judge, OTHER),
    "a backbone": lambda judge: judge.get_base_model().model(inputs_embeds=torch.randn(3, 9, 32)),
    "a generation": lambda judge: judge.generate(input_ids=OTHER, max_new_tokens=3),
    "a failure": lambda judge: fails(judge),
}


def fails(judge):
    with pytest.raises(GuardrailUnsupported, match="packed"):
        logits(judge, OTHER, position_ids=torch.zeros_like(OTHER))


@pytest.mark.parametrize("at", [0, 1, 3], ids=["before", "at", "after"])
@pytest.mark.parametrize("judged", JUDGES)
@pytest.mark.parametrize("same", [False, True], ids=["another model", "the same"])
@pytest.mark.parametrize("action", ["clamp", "refuse"])
def test_a_judge_inside_of_a_pass_changes_nothing_of_it(action, same, judged, at):
    fields = REFUSING if action == "refuse" else {"threshold": 0.4}
    model = guarded("llama", **fields)
    judge = model if same else guarded("llama", threshold=0.3, layer=2)
    expected, judgement = logits(model), []
    mute = (action, same, judged) == ("refuse", True, "a backbone")  # it could not say the refusal

    def asked(module, args, output):
        if not judgement:
            judgement.append(None)
            with pytest.raises(GuardrailNotReady, match='action="refuse"') if mute else nullcontext():
                JUDGES[judged](judge)

    handle = layers_of(model)[at].register_forward_hook(asked)
    with record_firings(model) as firings:
        assert torch.equal(logits(model), expected)
    handle.remove()
    assert judgement
    assert {firing.tokens for firing in firings} >= {IDS.shape[1]}
    assert (noted(CALL), noted(INPUTS)) == (None, None)


def test_a_judge_sees_its_own_inputs_and_not_those_around_it():
    model, judge = guarded("llama"), guarded("llama", threshold=0.3, layer=2)
    with record_firings(judge) as alone:
        logits(judge, OTHER)
    handle = layers_of(model)[2].register_forward_hook(lambda *_: (logits(judge, OTHER), None)[1])
    with record_firings(judge) as inside:
        logits(model)
    handle.remove()
    assert list(inside) == list(alone)


def test_a_layer_that_is_left_out_is_found_whatever_runs_inside():
    model, judge = guarded("llama", layer=3), guarded("llama")
    layers_of(model)[1].register_forward_hook(lambda *_: (logits(judge, OTHER), None)[1])
    layers_of(model)[3].forward, guard = lambda hidden, **_: hidden, layers_of(model)[3]
    guard._forward_hooks.clear()
    with pytest.raises(GuardrailNotReady, match=r"^Layer 3 .*`detach_guardrail`"):
        logits(model)


@pytest.mark.parametrize("name", [CALL, INPUTS])
def test_notes_that_are_gone_at_the_end_are_an_error(name):
    model = guarded("llama")
    layers_of(model)[2].register_forward_hook(lambda *_: note(name, None))
    with pytest.raises(GuardrailNotReady, match=re.escape(LOST)):
        logits(model)
    assert (noted(CALL), noted(INPUTS)) == (None, None)


def test_a_layer_of_another_model_finds_no_notes_of_the_one_around_it():
    model, other = guarded("llama"), guarded("llama")
    layer = layers_of(other)[1]

    def called(module, args, output):
        rotary = other.get_base_model().model.rotary_emb(output, torch.arange(12)[None])
        layer(output, position_embeddings=rotary)

    layers_of(model)[2].register_forward_hook(called)
    with pytest.raises(GuardrailNotReady, match=re.escape(OUTSIDE)):
        logits(model)


def test_what_an_interrupt_leaves_is_passed_over():
    model = guarded("llama", **REFUSING)
    expected = logits(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = layers_of(model)[2].register_forward_hook(interrupt)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            logits(model, OTHER, use_cache=True)
    handle.remove()
    assert torch.equal(logits(model), expected)
    assert (noted(CALL), noted(INPUTS)) == (None, None)


def test_a_backbone_that_is_called_after_an_interrupt_takes_nothing_of_it():
    model = guarded("llama", threshold=0.4)
    backbone = model.get_base_model().model
    embeds = model.get_input_embeddings()(IDS).detach()
    with record_firings(model) as expected, torch.no_grad():
        backbone(inputs_embeds=embeds)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = layers_of(model)[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        logits(model, torch.full_like(IDS, EOS), attention_mask=torch.zeros_like(IDS))
    handle.remove()
    with record_firings(model) as found, torch.no_grad():
        backbone(inputs_embeds=embeds)
    assert list(found) == list(expected)


@pytest.mark.parametrize("at", [0, 1, 2], ids=["before", "at", "after"])
def test_a_forward_past_the_hooks_after_an_interrupt_takes_nothing_of_it(at):
    model = guarded("llama", threshold=0.4)
    backbone = model.get_base_model().model

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = layers_of(model)[at].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        logits(model, IDS)
    handle.remove()
    for _ in range(2):
        with pytest.raises(GuardrailNotReady, match=re.escape(OUTSIDE)):
            backbone.forward(IDS)
    logits(model)
    assert (noted(CALL), noted(INPUTS)) == (None, None)


def test_the_usual_pass_walks_through_no_frames(monkeypatch):
    model = guarded("llama")
    logits(model)  # and what an earlier test left is gone
    monkeypatch.setattr(pass_notes, "_being_called", lambda: pytest.fail("frames were looked at"))
    logits(model)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("action", ["clamp", "refuse"])
def test_drafts_by_the_first_layers_change_nothing(layer, action):
    fields = REFUSING if action == "refuse" else {"threshold": 0.4}
    model, greedy = guarded("llama", layer=layer, **fields), {"max_new_tokens": 6, "do_sample": False}
    for row in IDS[:3]:
        expected = model.generate(input_ids=row[None], **greedy)
        assert torch.equal(model.generate(input_ids=row[None], assistant_early_exit=2, **greedy), expected)
        assert model.config.num_hidden_layers == 4


@pytest.mark.parametrize("layer", [0, 3])
def test_after_a_draft_that_fails_the_whole_model_runs(layer):
    model, greedy = guarded("llama", layer=layer, threshold=0.4), {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(input_ids=IDS[:1], **greedy)

    def broken(*_):
        raise MemoryError

    handle = layers_of(model)[1].register_forward_hook(broken)
    with pytest.raises(MemoryError):
        model.generate(input_ids=IDS[:1], assistant_early_exit=2, **greedy)
    handle.remove()
    assert model.config.num_hidden_layers == 4
    assert torch.equal(model.generate(input_ids=IDS[:1], **greedy), expected)


def test_fewer_layers_that_somebody_sets_are_no_draft():
    model = guarded("llama", layer=3)
    model.config.num_hidden_layers = 2
    with pytest.raises(GuardrailNotReady, match="Layer 3"):
        logits(model)
    assert model.config.num_hidden_layers == 2
    assert base_model("llama").config.num_hidden_layers == 4
