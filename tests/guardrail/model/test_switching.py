"""The guardrail as a PEFT method: switching, deleting, unloading, and what PEFT's own tests look at."""

import shutil

import pytest
import torch
from peft import PeftModel, get_model_status, get_peft_model
from peft_folders import loaded, logits
from upstream import adapters_of_transformers
from zoo import base_model, guarded, logits_of, plant, planted_config, token_ids

from sae_unlearn import GuardrailError, detach_guardrail, record_firings
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail import guard_layers


# ----------------------------------------------------------------------------------------------- switching and deleting


def two():
    model = guarded("llama")
    model.add_adapter("second", planted_config(layer=2))
    plant(model, "second", seed=1)
    return model


def test_set_adapter_chooses_which_guardrail_works(plain):
    model, single = two(), guarded("llama")
    assert torch.equal(logits(model), logits(single))
    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(second, logits(single))
    assert not torch.equal(second, plain)
    model.set_adapter("default")
    assert torch.equal(logits(model), logits(single))
    assert not any(p.requires_grad for layer in guard_layers(model) for p in layer.parameters())


def test_delete_adapter_leaves_the_other_alone(plain):
    model, single = two(), guarded("llama")
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), logits(single))
    with record_firings(model) as firings:
        logits(model)
    assert {f.adapter for f in firings} == {"default"}
    assert sum("sae_guardrail" in name for name, _ in model.named_parameters()) == 5


def test_deleting_the_last_guardrail_gives_the_base_model_back(plain):
    model = guarded("llama")
    model.delete_adapter("default")
    # the PeftModel itself has no active adapter then and cannot be called, as with a LoRA
    assert torch.equal(logits(model.base_model.model), plain)


def test_disable_adapter_holds_inside_its_block_only(plain):
    model = guarded("llama")
    expected = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), expected)
    with pytest.raises(ZeroDivisionError), model.disable_adapter():
        raise ZeroDivisionError
    assert torch.equal(logits(model), expected)


def test_unload_gives_back_the_very_model(plain):
    base = base_model("llama")
    names = list(base.state_dict())
    model = get_peft_model(base, planted_config())
    plant(model)
    assert model.unload() is base
    assert torch.equal(logits(base), plain)
    assert list(base.state_dict()) == names
    again = get_peft_model(base, planted_config())
    plant(again)
    assert not torch.equal(logits(again), plain)


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_and_the_guardrail_goes_on_working(merge):
    model = guarded("llama")
    expected = logits(model)
    with pytest.raises(GuardrailUnsupported, match=r"merged.*`unload\(\)`"):
        getattr(model, merge)()
    assert torch.equal(logits(model), expected)


def test_model_status_tells_of_the_guardrail():
    status = get_model_status(guarded("llama"))
    assert status.peft_types == {"default": "SAE_GUARDRAIL"}
    assert status.active_adapters == ["default"]
    assert status.enabled
    assert status.merged_adapters == []
    assert status.requires_grad == {"default": False}
    assert status.devices == {"default": ["cpu"]}
    assert status.num_adapter_layers == 1


@adapters_of_transformers
def test_transformers_own_interface(folders, plain, tmp_path):
    model = base_model("llama")
    model.load_adapter(str(folders["root"] / "guard"), adapter_name="one")
    other = two()
    other.set_adapter("second")
    other.save_pretrained(tmp_path / "two")
    model.load_adapter(str(tmp_path / "two" / "second"), adapter_name="two")
    model.set_adapter("one")
    assert torch.equal(logits(model), folders["guard"])
    model.set_adapter("two")
    assert torch.equal(logits(model), logits(other))
    model.set_adapter(["one", "two"])
    with record_firings(model) as firings:
        both = logits(model)
    assert {f.adapter for f in firings} == {"one", "two"}
    assert not torch.equal(both, folders["guard"])
    model.disable_adapters()
    assert torch.equal(logits(model), plain)
    model.enable_adapters()
    assert torch.equal(logits(model), both)
    model.delete_adapter("two")
    model.set_adapter("one")
    assert torch.equal(logits(model), folders["guard"])
    model.save_pretrained(tmp_path / "native")
    again = base_model("llama")
    again.load_adapter(str(tmp_path / "native"))
    assert torch.equal(logits(again), folders["guard"])
    assert torch.equal(logits(detach_guardrail(model)), plain)


# ---------------------------------------------------------------------------------------- what PEFT's own tests look at


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "falcon_h1"])
def test_attributes_and_names_of_the_base_model_stay(architecture):
    base = base_model(architecture)
    before = {name: p.data_ptr() for name, p in base.named_parameters()}
    model = get_peft_model(base, planted_config())
    plant(model)
    after = {n: p.data_ptr() for n, p in model.get_base_model().named_parameters() if "sae_guardrail" not in n}
    assert after == before
    assert model.base_model_torch_dtype == torch.float32
    assert model.config is base.config


def test_random_weights_for_tests_of_the_plumbing_have_an_effect(plain):
    config = planted_config(init_weights=False, threshold=0.0, special_ids=None)
    assert not torch.equal(logits(get_peft_model(base_model("llama"), config)), plain)


def test_a_config_is_not_changed_into_another_models(folders):
    copied = folders["root"] / "copied"
    shutil.copytree(folders["root"] / "guard", copied, dirs_exist_ok=True)
    before = (copied / "adapter_config.json").read_text()
    loaded(PeftModel.from_pretrained(base_model("llama"), copied))
    assert (copied / "adapter_config.json").read_text() == before


def test_pefts_loader_puts_no_weights_under_the_config_of_another_guardrail(tmp_path):
    """PEFT would keep the threshold and layer of the one that is there, and take the weights of the other."""
    for layer in (1, 2):
        guarded("llama", layer=layer, threshold=0.1).save_pretrained(tmp_path / str(layer))
    model = guarded("llama", threshold=0.4)
    expected = logits_of(model, token_ids(4, 10))
    for layer in (1, 2):
        with pytest.raises(GuardrailError, match="adapter_name='default'"):
            model.load_adapter(tmp_path / str(layer), "default")
    assert torch.equal(logits_of(model, token_ids(4, 10)), expected)
    model.load_adapter(tmp_path / "2", "other")
    model.delete_adapter("default")
    model.load_adapter(tmp_path / "1", "default")
    assert model.peft_config["default"].threshold == 0.1
