"""The guardrail as a PEFT method: its registration, every way of loading it, and its folder."""

import json

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from peft_folders import loaded, logits
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from zoo import WIDTH, base_model, guarded, plant, planted_config

from sae_unlearn import SAEGuardrailConfig, SparseAutoencoder, attach_guardrail
from sae_unlearn.guardrail import SAEGuardrailModel, guard_layers
from sae_unlearn.guardrail.peft_type import ensure_peft_type


# --------------------------------------------------------------------------------------------------------- registration


def test_the_method_is_registered_once_and_registering_again_gives_the_same_member():
    assert ensure_peft_type("SAE_GUARDRAIL") is PeftType.SAE_GUARDRAIL
    assert PeftType("SAE_GUARDRAIL") is PeftType.SAE_GUARDRAIL
    assert PeftType.SAE_GUARDRAIL.value == "SAE_GUARDRAIL"
    assert list(PeftType).count("SAE_GUARDRAIL") == 1
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SAE_GUARDRAIL] is SAEGuardrailConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.SAE_GUARDRAIL] is SAEGuardrailModel


# ------------------------------------------------------------------------------------------------------ ways of loading


def peft_from_pretrained(root):
    return PeftModel.from_pretrained(base_model("llama"), root / "guard")


def low_memory(root):
    return PeftModel.from_pretrained(base_model("llama"), root / "guard", low_cpu_mem_usage=True)


def auto_peft(root):
    return AutoPeftModelForCausalLM.from_pretrained(root / "guard")


def peft_load_adapter(root):
    model = get_peft_model(base_model("llama"), planted_config(), adapter_name="other")
    plant(model, "other", seed=5)
    model.load_adapter(root / "guard", adapter_name="loaded")
    model.set_adapter("loaded")
    return model


def native_load_adapter(root):
    model = base_model("llama")
    model.load_adapter(str(root / "guard"))
    return model


def native_low_memory(root):
    model = base_model("llama")
    model.load_adapter(str(root / "guard"), low_cpu_mem_usage=True)
    return model


def native_auto(root):
    return AutoModelForCausalLM.from_pretrained(root / "guard")


def attach(root):
    return attach_guardrail(base_model("llama"), root / "guard")


def trainable(root):
    return PeftModel.from_pretrained(base_model("llama"), root / "guard", is_trainable=True)


LOADERS = [
    peft_from_pretrained,
    low_memory,
    auto_peft,
    peft_load_adapter,
    native_load_adapter,
    native_low_memory,
    native_auto,
    attach,
    trainable,
]


@pytest.mark.parametrize("load", LOADERS)
def test_loaded_from_its_folder_it_guards_bit_for_bit_as_before(load, folders, plain):
    model = load(folders["root"])
    found = loaded(model)
    assert torch.equal(found, folders["guard"])
    assert not torch.equal(found, plain)
    for layer in guard_layers(model):
        for parameter in layer.parameters():
            assert parameter.device.type == "cpu"
            assert parameter.dtype == torch.float32
            assert not parameter.requires_grad


def test_config_is_read_as_its_own_class(folders):
    config = PeftConfig.from_pretrained(folders["root"] / "guard")
    assert type(config) is SAEGuardrailConfig
    assert (config.layer, config.num_features, config.threshold) == (1, 6, 0.6)
    assert config.base_model_name_or_path == str(folders["root"] / "base")
    assert config.inference_mode


# ----------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_holds_json_and_safetensors_only(tmp_path):
    guarded("llama").save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    json.loads((tmp_path / "adapter_config.json").read_text())
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key.rsplit(".guardrail.")[1]: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert shapes == {
        "sae_guardrail_encoder.weight": [6, WIDTH],
        "sae_guardrail_encoder.bias": [6],
        "sae_guardrail_encoder.threshold": [6],
        "sae_guardrail_decoder.weight": [6, WIDTH],
        "sae_guardrail_decoder.clamp": [6],
    }


def test_twenty_features_of_a_2304_wide_model_take_less_than_a_megabyte(tmp_path):
    shape = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8}
    config = LlamaConfig(vocab_size=64, hidden_size=2304, intermediate_size=16, **shape)
    model = get_peft_model(LlamaForCausalLM(config), planted_config(num_features=20))
    plant_random(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1_000_000
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 20 * 2304 * 2 * 4


def plant_random(model):
    for layer in guard_layers(model):
        for parameter in layer.parameters():
            parameter.data.normal_().abs_()


def test_it_loads_where_there_is_no_sae(folders, monkeypatch):
    def no_sae(*_, **__):
        raise AssertionError("an SAE was asked for")

    monkeypatch.setattr(SparseAutoencoder, "__init__", no_sae)
    monkeypatch.setattr(SparseAutoencoder, "from_pretrained", no_sae)
    for load in (attach, peft_from_pretrained, native_load_adapter):
        assert torch.equal(loaded(load(folders["root"])), folders["guard"])


def test_saving_with_resized_embeddings_stores_no_embeddings(tmp_path, folders):
    model = attach_guardrail(base_model("llama"), folders["root"] / "guard")
    model.get_base_model().resize_token_embeddings(120)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == 5
    assert torch.equal(loaded(attach_guardrail(base_model("llama"), tmp_path)), folders["guard"])


def test_the_state_dict_of_the_adapter_is_the_guardrail_alone():
    model = guarded("llama")
    assert len(get_peft_model_state_dict(model)) == 5
    assert sum("sae_guardrail" in key for key in model.state_dict()) == 5


def test_two_guardrails_are_saved_in_two_folders_and_each_loads_alone(tmp_path):
    model = guarded("llama")
    model.add_adapter("second", planted_config(layer=2))
    plant(model, "second", seed=1)
    model.save_pretrained(tmp_path)
    expected = {}
    for name, folder in (("default", tmp_path), ("second", tmp_path / "second")):
        model.set_adapter(name)
        expected[name] = logits(model)
        assert torch.equal(loaded(PeftModel.from_pretrained(base_model("llama"), folder)), expected[name])
    both = attach_guardrail(attach_guardrail(base_model("llama"), tmp_path), tmp_path / "second", adapter_name="b")
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    assert torch.equal(loaded(both), logits(model))
    assert not torch.equal(logits(model), expected["default"])
