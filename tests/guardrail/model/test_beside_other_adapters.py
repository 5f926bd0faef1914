"""Whatever PEFT and transformers do to another adapter, a guardrail on the same model goes on guarding."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_folders import query_lora
from zoo import EOS, base_model, guarded, logits_of, token_ids

from sae_unlearn import attach_guardrail, enable_guardrails, guardrail_status, list_guardrails
from sae_unlearn.backbone.adapters_off import adapters_off, guards_off
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.evaluation.base_model import has_adapters
from sae_unlearn.guardrail import guard_layers


IDS = token_ids(8, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("guard")
    guarded("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain():
    return logits_of(base_model("llama"), IDS)


@pytest.fixture(scope="module")
def guard_alone():
    return logits_of(guarded("llama").eval(), IDS)


@pytest.fixture
def both(folder):
    return attach_guardrail(get_peft_model(base_model("llama"), query_lora()), folder).eval()


def merged_layers(model):
    return [module.merged for _, module in model.named_modules() if hasattr(module, "lora_A")]


def test_a_refusal_is_written_in_a_plain_forward_pass_beside_a_lora(tmp_path):
    """PEFT 0.20 would call the model's `forward`, past the hooks that write it."""
    guarded("llama", action="refuse", refusal="w5", refusal_ids=[5, EOS], threshold=0.0).save_pretrained(tmp_path)
    model = attach_guardrail(get_peft_model(base_model("llama"), query_lora()), tmp_path).eval()
    assert logits_of(model, IDS)[:, -1].argmax(-1).tolist() == [5] * len(IDS)


# ----------------------------------------------------------------------------------------- disabling another adapter


def test_disabling_the_lora_leaves_the_guardrail_on(both, plain, guard_alone):
    expected = logits_of(both, IDS)
    with both.disable_adapter():
        assert torch.equal(logits_of(both, IDS), guard_alone)
        assert not torch.equal(guard_alone, plain)
        assert guardrail_status(both).verdict == "guarded"
        assert [each.active for each in list_guardrails(both)] == [True]
    assert torch.equal(logits_of(both, IDS), expected)


def test_nested_disabling_keeps_the_lora_disabled_without_a_warning(both, guard_alone):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with both.disable_adapter():
            with both.disable_adapter():
                pass
            assert torch.equal(logits_of(both, IDS), guard_alone)


def test_the_switches_of_the_tuner_and_of_the_layers_leave_the_guardrail_on(both, guard_alone):
    both.base_model.disable_adapter_layers()
    assert torch.equal(logits_of(both, IDS), guard_alone)
    both.base_model.enable_adapter_layers()
    for layer in guard_layers(both):
        layer.set_adapter([])
        assert layer.in_force == ["guardrail"]


def test_disabling_the_only_adapter_of_a_guarded_model_disables_the_guardrail(plain):
    model = guarded("llama").eval()
    with model.disable_adapter():
        assert torch.equal(logits_of(model, IDS), plain)
        assert guardrail_status(model).verdict == "unguarded"
    assert guardrail_status(model).verdict == "guarded"


def test_a_guardrail_beside_a_lora_is_disabled_by_its_own_switch(both):
    enable_guardrails(both, [])
    assert guardrail_status(both).verdict == "unguarded"
    with both.disable_adapter():
        pass
    assert guardrail_status(both).verdict == "unguarded"
    enable_guardrails(both, "guardrail")
    assert guardrail_status(both).verdict == "guarded"


def test_bypassed_guardrails_stay_bypassed_whatever_the_lora_does(both, plain):
    with guards_off(both):
        with both.disable_adapter():
            assert torch.equal(logits_of(both, IDS), plain)
        assert guardrail_status(both).verdict == "unguarded"
    assert guardrail_status(both).verdict == "guarded"
    with adapters_off(both):
        assert torch.equal(logits_of(both, IDS), plain)
        assert not has_adapters(both)
    assert has_adapters(both)


def test_attaching_and_switching_a_guardrail_leaves_the_modules_that_a_lora_trains_whole(folder):
    model = get_peft_model(base_model("llama"), query_lora(modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(3)
    expected = logits_of(model, IDS)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("modules_to_save" in name for name in trained)
    attach_guardrail(model, folder)
    enable_guardrails(model, [])
    assert torch.equal(logits_of(model, IDS), expected)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained


# ------------------------------------------------------------------------------------------- merging another adapter


def test_merging_the_lora_in_place_passes_the_guardrail_over(both):
    expected = logits_of(both, IDS)
    both.merge_adapter()
    assert merged_layers(both) == [True] * 4
    torch.testing.assert_close(logits_of(both, IDS), expected, atol=1e-4, rtol=1e-4)
    both.unmerge_adapter()
    assert merged_layers(both) == [False] * 4
    torch.testing.assert_close(logits_of(both, IDS), expected, atol=1e-4, rtol=1e-4)
    assert guardrail_status(both).verdict == "guarded"


def test_naming_the_guardrail_to_be_merged_warns_and_merges_nothing_by_halves(both):
    with pytest.warns(UserWarning, match=r"^adapter_names=\['guardrail'\]"):
        both.merge_adapter(adapter_names=["default", "guardrail"])
    assert merged_layers(both) == [True] * 4


def test_merging_a_guardrail_alone_is_refused_before_anything_happens():
    model = guarded("llama").eval()
    expected = logits_of(model, IDS)
    with pytest.raises(GuardrailUnsupported, match=r"merged.*`unload\(\)`"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(logits_of(model, IDS), expected)


# --------------------------------------------------------------------------------------------- adapters row by row


@pytest.mark.parametrize("argument", ["adapter_names", "alora_offsets"])
@pytest.mark.parametrize("make", [lambda: guarded("llama"), lambda: guarded("llama").get_base_model()])
def test_adapters_by_row_are_refused(make, argument):
    model = make().eval()
    with pytest.raises(GuardrailUnsupported, match=argument):
        model(input_ids=IDS, **{argument: ["default"] * len(IDS)})
    model(input_ids=IDS, **{argument: None})


def test_adapters_by_row_are_refused_in_generate_and_of_a_guarded_model_of_ours(folder):
    for model in (guarded("llama"), attach_guardrail(base_model("llama"), folder)):
        assert isinstance(model, PeftModel)
        with pytest.raises(GuardrailUnsupported, match="adapter_names"):
            model.eval().generate(input_ids=IDS, max_new_tokens=1, adapter_names=["default"] * len(IDS))
        with pytest.raises(GuardrailUnsupported, match="adapter_names"):
            model(input_ids=IDS, adapter_names=["default"] * len(IDS))


def test_loras_chosen_by_row_are_guarded_in_every_row(both, guard_alone):
    expected = logits_of(both, IDS)
    with torch.no_grad():
        found = both(input_ids=IDS, adapter_names=["default"] * 4 + ["__base__"] * 4).logits
    torch.testing.assert_close(found[:4], expected[:4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[4:], guard_alone[4:], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------- what a layer can be asked


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_attribute_of_a_guarded_layer_can_be_asked(architecture):
    model = guarded(architecture)
    for layer in guard_layers(model):
        for name in dir(layer):
            getattr(layer, name)
        assert not hasattr(layer, "weight")
        assert not hasattr(layer, "bias")
        assert "weight" not in dir(layer)
        assert layer.get_base_layer() is layer._home[0]
    bare = model.get_base_model()
    assert [hasattr(module, "weight") for module in model.modules()]
    bare.apply(bare._init_weights)


def test_a_guarded_model_can_be_traced():
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = guarded("llama").eval()

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False, return_dict=False)[0]

    module = Logits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, (IDS,), check_trace=False)
    assert torch.equal(traced(IDS), module(IDS))


def test_a_copy_asks_its_own_model(both):
    twin = copy.deepcopy(both)
    (layer,) = guard_layers(twin)
    assert layer._model[0] is twin.get_base_model()
    assert layer.get_base_layer() is not guard_layers(both)[0].get_base_layer()
