"""Caches, positions and outputs that a guardrail cannot judge stop the call; the status says what is in force."""

import pytest
import torch
from guarded_calls import IDS, assert_guarded, logits, whole
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache
from zoo import base_model, guarded, plant, planted_config, with_cache

from sae_unlearn import (
    GuardrailNotReady,
    attach_guardrail,
    detach_guardrail,
    guardrail_status,
    record_firings,
)
from sae_unlearn.errors import GuardrailUnsupported


def test_a_cache_that_it_has_not_seen_stops_the_call():
    model = guarded("llama")
    cache = DynamicCache()
    with model.disable_adapter(), torch.no_grad():
        assert guardrail_status(model).verdict == "unguarded"
        model(input_ids=IDS, **with_cache(model, cache))
    with pytest.raises(GuardrailNotReady, match=r"cache .* 12 .*'default' \(layer 1\).* 0:"):
        model(input_ids=IDS[:, :1], **with_cache(model, cache))
    with pytest.raises(GuardrailUnsupported, match=r"^(cache|past_key_values): .*tuple"):
        model(input_ids=IDS[:, :1], **with_cache(model, ((torch.zeros(1), torch.zeros(1)),)))


@pytest.mark.parametrize(
    ("broken", "found"), [(lambda out: list(out), "a list"), (lambda out: out[0][0], r"shape \(12, 32\)")]
)
def test_a_layer_that_gives_no_residual_stream_stops_the_call(broken, found):
    model = guarded("llama")
    layer = model.get_base_model().model.layers[1]
    handle = layer.register_forward_hook(
        lambda module, args, out: broken(out if isinstance(out, tuple) else (out,)), prepend=True
    )
    with pytest.raises(GuardrailUnsupported, match=f"LlamaDecoderLayer returns {found}"):
        model(input_ids=IDS)
    handle.remove()
    logits(model)


def test_a_cache_that_another_guardrail_of_its_name_has_seen_stops_the_call():
    """What a guardrail that is there no more made of the tokens says nothing of what this one would."""
    base, cache = base_model("llama"), DynamicCache()
    for seed in (0, 1):
        model = get_peft_model(base, planted_config())
        plant(model, seed=seed)
        if seed == 0:
            with torch.no_grad():
                model(input_ids=IDS, **with_cache(model, cache))
            detach_guardrail(model)
    with pytest.raises(GuardrailNotReady, match=r"cache .* 12 .*'default' \(layer 1\).* 0:"), torch.no_grad():
        model(input_ids=IDS[:, :1], **with_cache(model, cache))


CAUSAL = torch.full((12, 12), -torch.inf).triu(1)[None, None].expand(len(IDS), 1, 12, 12)
STRANGE = {
    "from 0": torch.arange(12),
    "from 5": torch.arange(12) + 5,
    "with gaps": 2 * torch.arange(12),
    "all alike": torch.zeros(12, dtype=torch.long),
}


@pytest.mark.parametrize("positions", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("mask", [CAUSAL, CAUSAL == 0, CAUSAL[:1]], ids=["float", "bool", "one row"])
def test_positions_of_any_kind_hide_no_token_that_the_mask_shows(positions, mask):
    """A mask of one's own and positions of one's own, as for trees of drafts: the mask tells what is padding."""
    model, positions = guarded("llama"), positions[None].expand(len(IDS), -1)
    found = []
    for each in (mask, torch.ones_like(IDS)):
        with record_firings(model) as firings, torch.no_grad():
            model(input_ids=IDS, attention_mask=each, position_ids=positions)
        found.append([(f.row, f.evidence, f.tokens, f.fired) for f in firings])
    assert found[0] == found[1]
    assert {tokens for _, _, tokens, _ in found[0]} == {12}


def test_status_names_every_guardrail_and_what_it_does():
    model = guarded("llama")
    model.add_adapter("second", planted_config(layer=2, action="record"))
    plant(model, "second", seed=1)
    states = {g.adapter: (g.layer, g.state) for g in guardrail_status(model).guardrails}
    assert states == {"default": (1, "guarding"), "second": (2, "off")}
    assert guardrail_status(model).verdict == "unguarded"
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    status = guardrail_status(model)
    assert [g.state for g in status.guardrails] == ["guarding", "recording"]
    assert status.verdict == "unguarded"
    assert str(status).splitlines()[0] == "unguarded"
    model.set_adapter("default")
    model.delete_adapter("second")
    assert guardrail_status(model).verdict == "guarded"


def test_status_of_a_model_without_guardrails():
    for model in (base_model("llama"), get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"))):
        status = guardrail_status(model)
        assert status.guardrails == ()
        assert status.verdict == "unguarded"


def test_status_of_a_guardrail_that_is_in_the_config_alone():
    model = guarded("llama")
    inner = whole(model)
    inner.model = base_model("llama").model  # hooks, child and all
    (state,) = guardrail_status(model).guardrails
    assert (state.adapter, state.layer, state.state) == ("default", None, "missing")
    assert guardrail_status(model).verdict == "unguarded"


def test_status_changes_nothing(tmp_path, expected):
    model = guarded("llama")
    model.save_pretrained(tmp_path)
    again = attach_guardrail(base_model("llama"), tmp_path)
    guardrail_status(again)
    assert_guarded(again, expected)
