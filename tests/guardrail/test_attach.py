"""Putting a guardrail on a model from a folder, the Hub or a config: what fits is exact, what does not is refused."""

import json
import os
import re
import shutil
import warnings
from functools import partial

import pytest
import torch
from edited_json import edited_json
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zoo import base_model, logits_of, planted_config, random_sae, token_ids

from sae_unlearn import (
    GuardrailError,
    SparseAutoencoder,
    attach_guardrail,
    detach_guardrail,
    fit_guardrail,
    guardrail_status,
    record_firings,
    set_action,
)
from sae_unlearn.guardrail import guard_layers


IDS = token_ids(24, 12)
logits = partial(logits_of, input_ids=IDS)
tiny_sae = partial(random_sae, 120)
COMMIT, OTHER = "a" * 40, "b" * 40


def by_hand(**fields):
    return planted_config(**{"feature_ids": [3, 8, 21], "clamp_value": -6.0, "threshold": 0.15} | fields)


@pytest.fixture(scope="module")
def fitted():
    model = fit_guardrail(
        base_model("llama"), None, tiny_sae(), features=[3, 8, 21], threshold=0.15, clamp_value=-6.0, min_tokens=1
    )
    return model, logits(model)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted[0].save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"


def test_from_a_folder_it_guards_bit_for_bit_as_it_was_saved(fitted, folder):
    plain = logits(base_model("llama"))
    for source in (folder, str(folder), f"{folder}/"):
        found = logits(attach_guardrail(base_model("llama"), source))
        assert torch.equal(found, fitted[1])
        assert not torch.equal(found, plain)


def test_saved_again_the_folder_is_the_same(folder, tmp_path):
    attach_guardrail(base_model("llama"), folder).save_pretrained(tmp_path / "again")
    for name in ("adapter_model.safetensors", "README.md"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    first, second = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path / "again"))
    assert first == second


def test_from_a_subfolder(fitted, folder):
    found = attach_guardrail(base_model("llama"), folder.parent, subfolder="guard")
    assert torch.equal(logits(found), fitted[1])


def test_generation_after_attaching_is_generation_before_saving(fitted, folder):
    settings = {"max_new_tokens": 8, "do_sample": False}
    again = attach_guardrail(base_model("llama"), folder)
    assert torch.equal(again.generate(input_ids=IDS, **settings), fitted[0].generate(input_ids=IDS, **settings))


# ---------------------------------------------------------------------------------------------- the model it belongs to


def shorter():
    model = base_model("llama")
    model.config.num_hidden_layers = 3
    model.model.layers = model.model.layers[:3]
    return model


def wider():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 8, "vocab_size": 97}
    return LlamaForCausalLM(LlamaConfig(hidden_size=64, **shape))


def other_weights():
    model = base_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    return model


WRONG = [
    (lambda: base_model("qwen2"), r"'qwen2' model and not 'llama'"),
    (shorter, "number of layers 4, but LlamaForCausalLM has 3"),
    (wider, "hidden size 32, but LlamaForCausalLM has 64"),
    (other_weights, r"sampled embedding weights differ"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=["type", "layers", "width", "weights"])
def test_another_model_is_refused_untouched(build, message, folder):
    model = build()
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, folder)
    assert_untouched(model)


def assert_untouched(model):
    assert not guard_layers(model)
    assert not any("sae_guardrail" in name for name in model.state_dict())
    assert not any(
        type(getattr(hook, "__self__", None)).__module__.startswith("sae_unlearn")
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    assert not hasattr(model, "peft_config")


def test_a_descendant_is_taken_with_a_warning_when_asked(folder):
    with pytest.warns(UserWarning, match="this is another model"):
        model = attach_guardrail(other_weights(), folder, check_base=False)
    with record_firings(model) as firings:
        logits(model)
    assert len(firings) == len(IDS)


def test_check_base_false_does_not_excuse_another_shape(folder):
    for build, message in WRONG[1:3]:
        with pytest.raises(GuardrailError, match=message):
            attach_guardrail(build(), folder, check_base=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_is_known_again_in_another_precision(dtype, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attach_guardrail(base_model("llama").to(dtype), folder)


def test_peft_reads_a_sealed_config_without_a_warning_and_saves_it_without_the_seal(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = PeftConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    assert "weights_sha256" in json.loads((folder / "adapter_config.json").read_text())
    assert "sha256" not in (tmp_path / "adapter_config.json").read_text().replace('"sha256"', "")


def test_the_model_is_known_again_with_a_longer_vocabulary_and_a_lora(fitted, folder):
    model = base_model("llama")
    model.resize_token_embeddings(130, mean_resizing=False)
    attach_guardrail(model, folder)
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"))
    assert torch.equal(logits(attach_guardrail(lora, folder).eval()), fitted[1])


# ---------------------------------------------------------------------------------------------------- malformed folders


def config_edit(**fields):
    return edited_json("adapter_config.json", **fields)


def config_text(text):
    return lambda folder: (folder / "adapter_config.json").write_bytes(text)


def tensors_edit(change):
    def lie(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        found = {key.split("guardrail.sae_guardrail_")[1]: key for key in tensors}
        change(tensors, found)
        save_file({key: t.contiguous() for key, t in tensors.items()}, path)
        unseal(folder)

    return lie


def unseal(folder):
    """As one does who changes a guardrail by hand."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_sha256")}))


def fill(name, value):
    def change(tensors, found):
        tensors[found[name]].view(-1)[0] = value

    return tensors_edit(change)


def zero_row(name):
    def change(tensors, found):
        tensors[found[name]][1] = 0

    return tensors_edit(change)


def cast(name, dtype):
    def change(tensors, found):
        tensors[found[name]] = tensors[found[name]].to(dtype)

    return tensors_edit(change)


def narrower(tensors, found):
    tensors[found["encoder.weight"]] = tensors[found["encoder.weight"]][:, :-1]
    tensors[found["encoder.bias"]] = torch.zeros(6)


def one_missing(tensors, found):
    del tensors[found["decoder.clamp"]]


def one_more(tensors, found):
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2)


def pickled(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")


def truncated(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def header_lies(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def pickle_in_disguise(folder):
    path = folder / "adapter_model.safetensors"
    size = path.stat().st_size
    torch.save({"x": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])


LIES = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "weights pickled": (pickled, "has no adapter_model.safetensors"),
    "pickle in disguise": (pickle_in_disguise, "not a valid safetensors file"),
    "config not json": (config_text(b"{layer: 1"), "is not JSON"),
    "config not text": (config_text(b"\xff\xfe\x00"), "is not JSON"),
    "config a list": (config_text(b"[1]"), "got list"),
    "config too deep": (config_text(b"[" * 200_000), "is not JSON"),
    "config too large": (config_text(b" " * (4 * 2**20 + 1)), "more than 4194304"),
    "config holds NaN": (config_text(b'{"peft_type": "SAE_GUARDRAIL", "threshold": NaN}'), "holds NaN"),
    "config of a LoRA": (config_edit(peft_type="LORA"), "got a 'LORA' adapter"),
    "no method": (config_edit(peft_type=None), "got a None adapter"),
    "unknown key": (config_edit(trust_remote_code=True), r"\['trust_remote_code'\]"),
    "imports a class": (config_edit(auto_mapping={"base_model_class": "X", "parent_library": "os"}), "auto_mapping"),
    "newer format": (config_edit(format_version=3), "format_version=3"),
    "older format": (config_edit(format_version=1), "format_version=1: expected 2"),
    "layer a text": (config_edit(layer="1"), "layer='1'"),
    "layer too deep": (config_edit(layer=7, num_layers=None), r"named \*\.7"),
    "no threshold": (config_edit(threshold=None), "expected features.* threshold"),
    "threshold never crossed": (config_edit(threshold=2.0), "would never fire"),
    "statistic unknown": (config_edit(statistic="none"), "statistic='none'"),
    "positive clamp value": (config_edit(clamp_value=3.0), "clamp_value=3.0"),
    "no width": (config_edit(hidden_size=None), "hidden_size"),
    "more features than rows": (config_edit(feature_ids=list(range(9))), "bytes.* 9 features"),
    "another width": (config_edit(hidden_size=33), r"expected F32 \[3, 33\]"),
    "fingerprint no mapping": (config_edit(fingerprint=[1]), "base_model.fingerprint="),
    "fingerprint of another shape": (
        config_edit(fingerprint={"model_type": "llama", "embedding": [1], "rows": 24}),
        "number",
    ),
    "fingerprint of too many rows": (
        config_edit(fingerprint={"model_type": "llama", "rows": 10**9}),
        "vocabulary",
    ),
    "truncated": (truncated, "not a valid safetensors file"),
    "header too large": (header_lies, "not a valid safetensors file"),
    "tensor missing": (tensors_edit(one_missing), "bytes|0 tensors named"),
    "tensor too many": (tensors_edit(one_more), "unknown tensors"),
    "tensor too narrow": (tensors_edit(narrower), "expected F32|bytes"),
    "half precision": (cast("encoder.threshold", torch.float16), "expected F32|bytes"),
    "integers": (cast("encoder.bias", torch.int32), "is I32"),
    "NaN in the encoder": (fill("encoder.weight", torch.nan), "encoder.weight of .* not finite"),
    "infinite bias": (fill("encoder.bias", -torch.inf), "encoder.bias of .* not finite"),
    "NaN threshold": (fill("encoder.threshold", torch.nan), "encoder.threshold of .* not finite"),
    "infinite clamp": (fill("decoder.clamp", -torch.inf), "decoder.clamp of .* not finite"),
    "negative threshold": (fill("encoder.threshold", -0.1), "encoder.threshold of .* negative"),
    "amplifying clamp": (fill("decoder.clamp", 2.0), "amplify"),
    "deaf feature": (zero_row("encoder.weight"), r"encoder.weight of .*features \[1\]"),
    "dumb feature": (zero_row("decoder.weight"), r"decoder.weight of .*features \[1\]"),
}


@pytest.mark.parametrize(("lie", "message"), LIES.values(), ids=LIES)
def test_malformed_folder_is_refused_and_the_model_left_untouched(lie, message, folder):
    lie(folder)
    model = base_model("llama")
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, folder)
    assert_untouched(model)


def test_a_repeated_key_of_a_config_cannot_hide_a_value(folder):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "threshold": 3.0}')
    with pytest.raises(GuardrailError, match="'threshold' twice"):
        attach_guardrail(base_model("llama"), folder)


# -------------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(folder, tmp_path):
    """huggingface_hub's cache with `me/guard` at two commits; `main` is the second, whose dose is nothing."""
    cache = tmp_path / "hub"
    repo = cache / "models--me--guard"
    for commit in (COMMIT, OTHER):
        shutil.copytree(folder, repo / "snapshots" / commit)
    fill_all = tensors_edit(lambda tensors, found: tensors[found["decoder.clamp"]].fill_(-0.5))
    fill_all(repo / "snapshots" / OTHER)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(OTHER)
    (repo / "refs" / "v1").write_text(COMMIT)
    return cache


def test_from_the_hub_at_a_pinned_revision(hub, fitted):
    for revision in (COMMIT, "v1"):
        model = attach_guardrail(base_model("llama"), "me/guard", revision=revision, cache_dir=hub)
        assert torch.equal(logits(model), fitted[1])
    newest = attach_guardrail(base_model("llama"), "me/guard", cache_dir=hub)
    assert not torch.equal(logits(newest), fitted[1])


def test_both_files_are_of_one_commit(hub, fitted, monkeypatch):
    """A branch that moves between the two reads does not mix a config with another commit's weights."""
    from sae_unlearn.files import hub as source

    original = source.hf_hub_download
    (hub / "models--me--guard" / "refs" / "main").write_text(COMMIT)

    def moving(repo, name, **kwargs):
        path = original(repo, name, **kwargs)
        (hub / "models--me--guard" / "refs" / "main").write_text(OTHER)
        return path

    monkeypatch.setattr(source, "hf_hub_download", moving)
    model = attach_guardrail(base_model("llama"), "me/guard", cache_dir=hub)
    assert torch.equal(logits(model), fitted[1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("me/nothing", "not cached"),
        ("no/such/folder", "neither a folder here nor the name of a Hub repository"),
        ("", "."),
    ],
)
def test_what_is_not_there_is_said_so(source, message, tmp_path):
    model = base_model("llama")
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, source, cache_dir=tmp_path)
    assert_untouched(model)


def test_a_revision_that_is_not_there_is_refused(hub):
    with pytest.raises(GuardrailError, match="not cached"):
        attach_guardrail(base_model("llama"), "me/guard", revision="c" * 40, cache_dir=hub)


# ------------------------------------------------------------------------------------------------ beside other adapters


def test_a_second_guardrail_joins_the_first_and_both_are_active(folder):
    model = attach_guardrail(base_model("llama"), folder)
    first = logits(model)
    second = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2))
    assert second is model
    assert list(model.peft_config) == ["default", "guardrail"]
    with record_firings(model) as firings:
        both = logits(model)
    assert {f.adapter for f in firings} == {"default", "guardrail"}
    assert not torch.equal(both, first)
    assert detach_guardrail(model, "guardrail") is model
    assert torch.equal(logits(model), first)


def test_a_guardrail_joins_one_that_was_loaded_by_transformers(folder):
    model = base_model("llama")
    model.load_adapter(str(folder))
    first = logits(model)
    both = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="second")
    with record_firings(both) as firings:
        assert not torch.equal(logits(both), first)
    assert {f.adapter for f in firings} == {"default", "second"}


@pytest.mark.parametrize("name", [None, "guardrail", "layers", "clamp", "weight", "1", "sae"])
def test_guardrails_are_saved_whole_whatever_the_others_are_called(name, folder, tmp_path, recwarn):
    """PEFT leaves out of one adapter's file whatever has another's name between its dots."""
    model = attach_guardrail(base_model("llama"), folder)
    model = attach_guardrail(model, by_hand(layer=1), sae=tiny_sae(1), adapter_name=name)
    assert not [warning for warning in recwarn if "Adapter name" in str(warning.message)]
    _, second = model.peft_config
    expected = logits(model)
    model.save_pretrained(tmp_path / "both")
    again = attach_guardrail(base_model("llama"), tmp_path / "both")
    again = attach_guardrail(again, tmp_path / "both" / second, adapter_name=second)
    assert torch.equal(logits(again), expected)
    assert torch.equal(logits(detach_guardrail(again, second)), logits(detach_guardrail(model, second)))


def test_a_second_guardrail_beside_a_lora_leaves_the_first_active(folder):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    plain = logits(lora)
    model = attach_guardrail(lora, folder)
    model = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="second")
    with record_firings(model) as firings:
        logits(model)
    assert {f.adapter for f in firings} == {"guardrail", "second"}
    assert torch.equal(logits(detach_guardrail(model)), plain)


@pytest.mark.parametrize("name", ["layers", "q_proj", "1", "lora_A"])
def test_a_name_for_which_peft_would_lose_the_lora_beside_it_is_refused(folder, name, tmp_path):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    with pytest.raises(GuardrailError, match=f"adapter_name='{name}' is part of the path"):
        attach_guardrail(lora, folder, adapter_name=name)
    model = attach_guardrail(lora, folder, adapter_name="topic")
    before = {key for key, _ in lora.named_parameters() if "lora_" in key}
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(before)


def test_a_guardrail_on_a_lora_leaves_the_lora_active_and_is_found_by_name(folder):
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    plain = logits(lora)
    model = attach_guardrail(lora, folder)
    assert model is lora
    assert list(model.peft_config) == ["default", "guardrail"]
    assert not torch.equal(logits(model), plain)
    assert detach_guardrail(model, "guardrail") is lora
    assert torch.equal(logits(model), plain)


def test_prompt_learning_is_refused(folder):
    model = get_peft_model(base_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(GuardrailError, match="cannot join PromptTuningConfig"):
        attach_guardrail(model, folder)


def test_of_a_compiled_model_the_model_inside_is_guarded(folder, fitted, tmp_path):
    base = base_model("llama")
    model = attach_guardrail(torch.compile(base, backend="eager"), folder)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), tmp_path / "again")), fitted[1])
    compiled = torch.compile(model, backend="eager")
    both = attach_guardrail(compiled, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="b")
    assert both is model
    assert detach_guardrail(compiled, "b") is compiled
    assert torch.equal(logits(model), fitted[1])
    assert detach_guardrail(compiled) is base
    assert_untouched(base)


def test_what_transformers_loaded_is_detached_and_can_be_loaded_again(folder, fitted, tmp_path):
    model = base_model("llama")
    model.load_adapter(str(folder))
    detach_guardrail(model)
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    model.load_adapter(str(folder))
    assert torch.equal(logits(model), fitted[1])


TAKEN = ["default", "keys", "train"]  # by the other guardrail, and by torch
PATHS = ["a/b", "/a", "a\\b", "a:b", " a", "a\n", "a\u202e"]


@pytest.mark.parametrize("name", [*TAKEN, *PATHS, "a.b", "sae_guardrail_x"])
def test_a_name_that_cannot_be_given_is_refused(name, folder):
    model = attach_guardrail(base_model("llama"), folder)
    before = logits(model)
    with pytest.raises(GuardrailError, match=re.escape(repr(name))):
        attach_guardrail(model, folder, adapter_name=name)
    assert torch.equal(logits(model), before)
    assert list(model.peft_config) == ["default"]


def test_detaching_what_is_not_there_is_refused(folder):
    with pytest.raises(GuardrailError, match="adapter_name=None"):
        detach_guardrail(base_model("llama"))
    with pytest.raises(GuardrailError, match="adapter_name='other'"):
        detach_guardrail(attach_guardrail(base_model("llama"), folder), "other")


def test_detaching_all_gives_back_the_very_model_untouched(folder):
    base = base_model("llama")
    plain, names = logits(base), list(base.state_dict())
    model = attach_guardrail(base, folder)
    model = attach_guardrail(model, by_hand(layer=2), sae=tiny_sae(1, layer=2), adapter_name="b")
    assert detach_guardrail(model) is base
    assert torch.equal(logits(base), plain)
    assert list(base.state_dict()) == names
    assert_untouched(base)


# -------------------------------------------------------------------------------------------------------- from a config


def test_from_a_config_and_an_sae_in_memory(fitted):
    model = attach_guardrail(base_model("llama"), by_hand(), sae=tiny_sae())
    assert torch.equal(logits(model), fitted[1])


def test_from_a_config_that_names_its_sae_on_the_hub(fitted, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    repo = cache / "models--me--sae"
    tiny_sae().save_pretrained(repo / "snapshots" / COMMIT / "layer_1")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    source = {"id": "me/sae", "revision": COMMIT, "subfolder": "layer_1"}
    original = SparseAutoencoder.from_pretrained
    monkeypatch.setattr(
        SparseAutoencoder, "from_pretrained", lambda *args, **kwargs: original(*args, **kwargs, cache_dir=cache)
    )
    model = attach_guardrail(base_model("llama"), by_hand(sae_source=source))
    assert torch.equal(logits(model), fitted[1])


@pytest.mark.parametrize(
    ("config", "sae", "message"),
    [
        (lambda: by_hand(threshold=None), tiny_sae, "threshold"),
        (lambda: by_hand(clamp_value=None), tiny_sae, "clamp_value"),
        (lambda: planted_config(feature_ids=None, clamp_value=-5.0), tiny_sae, "feature_ids"),
        (by_hand, lambda: None, "Pass `sae=`"),
        (lambda: by_hand(sae_source={"id": "my-sae", "local": True}), lambda: None, "Pass `sae=`"),
        (by_hand, lambda: tiny_sae(layer=2), "layer=1: expected 2"),
        (by_hand, lambda: tiny_sae(width=40), "hidden size 40"),
        (lambda: by_hand(layer=9), lambda: tiny_sae(layer=9), "layer=9"),
    ],
    ids=["threshold", "clamp", "features", "no sae", "local sae", "layer", "width", "too deep"],
)
def test_a_config_that_lacks_something_is_refused(config, sae, message):
    model = base_model("llama")
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, config(), sae=sae())
    assert_untouched(model)


def test_feature_ids_beyond_the_sae_are_refused():
    model = base_model("llama")
    with pytest.raises(ValueError, match="500"):
        attach_guardrail(model, by_hand(feature_ids=[500]), sae=tiny_sae())
    assert_untouched(model)


def test_the_config_that_was_given_can_be_given_again():
    config = by_hand()
    first = attach_guardrail(base_model("llama"), config, sae=tiny_sae())
    second = attach_guardrail(base_model("llama"), config, sae=tiny_sae())
    assert torch.equal(logits(first), logits(second))
    other = attach_guardrail(base_model("gpt2"), config, sae=tiny_sae())
    assert logits(other).isfinite().all()
    assert torch.equal(logits(first), logits(second))


def test_what_is_changed_on_one_model_is_not_changed_on_another_of_the_same_config():
    config = by_hand()
    first, second = (attach_guardrail(base_model("llama"), config, sae=tiny_sae()) for _ in range(2))
    set_action(first, "default", "record")
    assert guardrail_status(first).verdict == "unguarded"
    assert guardrail_status(second).verdict == "guarded"
    assert config.action == "clamp"


def test_the_folder_does_not_name_a_local_path(folder):
    home = os.fspath(folder.parent)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        metadata = json.dumps(file.metadata())
    for text in (metadata, (folder / "adapter_config.json").read_text(), (folder / "README.md").read_text()):
        assert home not in text
