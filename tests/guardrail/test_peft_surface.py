"""The guardrail as a PEFT method: everything that PEFT and transformers offer for an adapter."""

import json
import shutil
from functools import partial

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from upstream import adapters_of_transformers
from zoo import WIDTH, base_model, guarded, logits_of, plant, planted_config, token_ids

from sae_unlearn import (
    GuardrailError,
    SAEGuardrailConfig,
    SparseAutoencoder,
    attach_guardrail,
    detach_guardrail,
    record_firings,
)
from sae_unlearn.guardrail import SAEGuardrailModel, guard_layers
from sae_unlearn.guardrail.peft_type import ensure_peft_type


IDS = token_ids(32, 12)
logits = partial(logits_of, input_ids=IDS)
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def plain():
    return logits(base_model("llama"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved base model, a guardrail fitted to it in `guard`, and a LoRA in `lora`; and the logits with each."""
    root = tmp_path_factory.mktemp("peft")
    base_model("llama").save_pretrained(root / "base")
    guard = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), planted_config(threshold=0.6))
    plant(guard)
    guard.save_pretrained(root / "guard")
    torch.manual_seed(0)
    lora = get_peft_model(base_model("llama"), lora_config())
    lora.save_pretrained(root / "lora")
    return {"root": root, "guard": logits(guard.eval()), "lora": logits(lora.eval())}


def lora_config(**kwargs):
    return LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM", **kwargs)


def loaded(model):
    model.eval()
    return logits(model)


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
    with pytest.raises(NotImplementedError, match="cannot be merged"):
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


# -------------------------------------------------------------------------------------------------------- beside a LoRA


def on_a_peft_lora(root):
    return attach_guardrail(
        PeftModel.from_pretrained(base_model("llama"), root / "lora"), root / "guard", check_base=False
    )


def on_a_trainable_lora(root):
    lora = PeftModel.from_pretrained(base_model("llama"), root / "lora", is_trainable=True)
    return attach_guardrail(lora, root / "guard", check_base=False)


def native_lora_first(root):
    model = base_model("llama")
    model.load_adapter(str(root / "lora"), adapter_name="lora")
    model.load_adapter(str(root / "guard"), adapter_name="guard")
    model.set_adapter(["lora", "guard"])
    return model


def native_guard_first(root):
    model = base_model("llama")
    model.load_adapter(str(root / "guard"), adapter_name="guard")
    model.load_adapter(str(root / "lora"), adapter_name="lora")
    model.set_adapter(["lora", "guard"])
    return model


NATIVE = [pytest.param(build, marks=adapters_of_transformers) for build in (native_lora_first, native_guard_first)]
BESIDE = [on_a_peft_lora, on_a_trainable_lora, *NATIVE]


@pytest.mark.parametrize("build", BESIDE)
def test_a_lora_and_a_guardrail_both_work_in_either_order(build, folders, plain):
    model = build(folders["root"])
    both = loaded(model)
    with record_firings(model) as firings:
        logits(model)
    fired = torch.tensor([f.fired for f in firings])
    assert fired.any()
    assert not fired.all()
    # quiet rows are the LoRA's bit for bit, fired rows are neither one's alone
    assert torch.equal(both[~fired], folders["lora"][~fired])
    assert (both - folders["lora"])[fired].abs().amax(dim=(1, 2)).min() > 0
    assert not torch.allclose(both, folders["guard"])
    lora_in = AutoModelForCausalLM.from_pretrained(folders["root"] / "base")
    merged = PeftModel.from_pretrained(lora_in, folders["root"] / "lora").merge_and_unload()
    alone = attach_guardrail(merged, folders["root"] / "guard", check_base=False)
    torch.testing.assert_close(both, loaded(alone), atol=1e-4, rtol=1e-4)


def test_a_lora_saved_beside_a_guardrail_holds_no_guard_tensors(folders, tmp_path):
    model = on_a_peft_lora(folders["root"])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        keys = list(file.keys())
    assert keys
    assert all("lora_" in key for key in keys)
    assert torch.equal(loaded(PeftModel.from_pretrained(base_model("llama"), tmp_path)), folders["lora"])
    guard = next(p for p in tmp_path.rglob("adapter_config.json") if json.loads(p.read_text())["peft_type"] != "LORA")
    with safe_open(guard.parent / "adapter_model.safetensors", framework="pt") as file:
        assert all("sae_guardrail" in key for key in file.keys())  # noqa: SIM118


def test_a_lora_stays_trainable_beside_a_firing_guardrail_and_learns_through_it(folders):
    model = on_a_trainable_lora(folders["root"])
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with record_firings(model) as firings:
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert any(f.fired for f in firings)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.abs().max() > 0 for name, g in gradients.items() if "layers.0." in name)  # below the guard
    unguarded = PeftModel.from_pretrained(base_model("llama"), folders["root"] / "lora", is_trainable=True)
    unguarded(input_ids=IDS, labels=IDS).loss.backward()
    other = {name: p.grad for name, p in unguarded.named_parameters() if p.requires_grad}
    assert gradients.keys() == other.keys()
    assert not torch.allclose(gradients[min(other)], other[min(other)])
    assert all(p.grad is None for layer in guard_layers(model) for p in layer.parameters())


def test_switching_the_lora_leaves_the_guardrail_in_force(folders):
    model = on_a_peft_lora(folders["root"])
    model.add_adapter("other", lora_config())
    model.set_adapter("other")
    with record_firings(model) as firings:
        logits(model)
    assert len(firings) == len(IDS)


def test_detaching_from_a_lora_gives_back_the_lora(folders):
    model = detach_guardrail(on_a_peft_lora(folders["root"]))
    assert isinstance(model, PeftModelForCausalLM)
    assert list(model.peft_config) == ["default"]
    assert torch.equal(loaded(model), folders["lora"])


def test_merging_the_lora_keeps_the_guardrail(folders):
    model = on_a_peft_lora(folders["root"])
    before = loaded(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(detach_guardrail(merged)), folders["lora"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # in the latter the mask is not the second argument
def test_a_call_is_what_pefts_own_forward_makes_of_it(architecture):
    model, ids = guarded(architecture), token_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ways = [((ids,), {"attention_mask": mask}), ((ids, mask), {}), ((), {"input_ids": ids, "attention_mask": mask})]
    ways.append(((ids,), {"attention_mask": mask, "adapter_names": None}))
    with torch.no_grad():
        expected = PeftModelForCausalLM.forward(model, ids, mask).logits
        for args, kwargs in ways:
            torch.testing.assert_close(model(*args, **kwargs).logits, expected, atol=0, rtol=0)
        assert not torch.equal(base_model(architecture)(ids, attention_mask=mask).logits, expected)


def test_nesting_one_peft_model_in_another_is_refused(folders):
    lora = PeftModel.from_pretrained(base_model("llama"), folders["root"] / "lora")
    for nest in (
        lambda: PeftModel.from_pretrained(lora, folders["root"] / "guard", adapter_name="guard"),
        lambda: get_peft_model(lora, planted_config(), adapter_name="guard"),
    ):
        with pytest.raises(GuardrailError, match=r"model: .*got a PeftModel"):
            nest()
        assert torch.equal(loaded(lora), folders["lora"])


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
