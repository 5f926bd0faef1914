"""A guarded model that is merged, quantized or compiled, or has another adapter, guards or raises."""

import warnings

import pytest
import torch
from guarded_calls import GREEDY, IDS, assert_guarded, logits, whole
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.generation.configuration_utils import CompileConfig
from upstream import adapters_of_transformers
from zoo import base_model, guarded, plant, planted_config

from sae_unlearn import detach_guardrail, enable_guardrails, guardrail_status, record_firings
from sae_unlearn.errors import GuardrailUnsupported


# --------------------------------------------------------------------------------------------------- other adapters


@adapters_of_transformers
def test_a_lora_that_transformers_adds_or_activates_leaves_it_in_force(tmp_path):
    """transformers activates it on every tuner layer of the model, a guardrail's among them."""
    model = guarded("llama")
    model.save_pretrained(tmp_path)
    base = base_model("llama")
    base.load_adapter(tmp_path, adapter_name="guard")
    for each, name in ((whole(model), "default"), (base, "guard")):
        each.add_adapter(LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), "aligned")
        for activate in (lambda: None, lambda: each.set_adapter("aligned")):  # noqa: B023
            activate()
            assert [(g.adapter, g.state) for g in guardrail_status(each).guardrails] == [(name, "guarding")]
            with record_firings(each) as firings:
                logits(each)
            assert len(firings) == len(IDS)
    base.disable_adapters()
    assert guardrail_status(base).verdict == "guarded"  # beside a LoRA the switch is the LoRA's
    with record_firings(base) as firings:
        logits(base)
    assert len(firings) == len(IDS)
    base.enable_adapters()
    enable_guardrails(base, [])
    assert guardrail_status(base).verdict == "unguarded"


# ------------------------------------------------------------------------------------------------- merged and quantised


def test_merging_raises_and_it_goes_on_guarding(expected):
    model = guarded("llama")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(GuardrailUnsupported, match=r"merged.*`unload\(\)`"):
            merge()
    assert_guarded(model, expected)


def test_merging_a_lora_beside_it_keeps_it():
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    config = planted_config()
    from sae_unlearn.guardrail.model import SAEGuardrailModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAEGuardrailModel(lora.get_base_model(), config, "guard")
    plant(lora, "guard")
    assert guardrail_status(lora).verdict == "guarded"
    merged = lora.merge_and_unload()
    assert guardrail_status(merged).verdict == "guarded"
    with record_firings(merged) as firings:
        logits(merged)
    assert len(firings) == len(IDS)


def test_quantised_it_is_guarded():
    """Dynamic int8 replaces every linear layer of a copy; the guardrail's own weights are no linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(guarded("llama"), {nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in model.modules())
    assert guardrail_status(model).verdict == "guarded"
    with record_firings(model) as firings:
        logits(model)
    assert {f.fired for f in firings} == {True, False}


# ------------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.slow
def test_compiled_it_is_guarded(expected):
    model = torch.compile(guarded("llama"), backend="eager")
    assert_guarded(model, expected, atol=1e-5)


def compiled_whole(base):
    return torch.compile(base, backend="eager")


def compiled_in_place(base):
    base.compile(backend="eager")
    return base


def compiled_layers(base):
    for layer in base.model.layers:
        layer.compile(backend="eager")
    return base


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_layers])
def test_what_was_compiled_before_is_guarded_from_then_on(compiled, expected):
    """Compiled code does not look whether hooks have come or gone."""
    base = base_model("llama")
    run = compiled(base)
    torch.testing.assert_close(logits(run), expected[1])
    model = get_peft_model(base, planted_config())
    plant(model)
    torch.testing.assert_close(logits(run), expected[0])
    assert guardrail_status(run).verdict == "guarded"
    detach_guardrail(model)
    torch.testing.assert_close(logits(run), expected[1])


@pytest.mark.slow
def test_generation_that_transformers_compiled_before_is_guarded_from_then_on():
    """With a static cache `generate` compiles the model by itself, and keeps the code."""
    settings = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    by_code = GREEDY | {"cache_implementation": "static", "compile_config": settings}
    base = base_model("llama")
    plain = base.generate(input_ids=IDS, **by_code)
    model = get_peft_model(base, planted_config(threshold=0.3))
    plant(model)
    found = model.generate(input_ids=IDS, **by_code)
    assert torch.equal(found, guarded("llama", threshold=0.3).generate(input_ids=IDS, **GREEDY))
    assert not torch.equal(found, plain)


@pytest.mark.slow
def test_compiled_without_weights_nothing_comes_out():
    """Compiled code cannot look at weights; those that never arrived are NaN, and so is every logit."""
    model = get_peft_model(base_model("llama"), planted_config())
    assert guardrail_status(model).verdict == "raises"
    assert not logits(torch.compile(model, backend="eager")).isfinite().any()
