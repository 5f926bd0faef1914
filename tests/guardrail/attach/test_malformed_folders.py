"""A malformed folder is refused by name, and the model is left untouched."""

import pytest
import torch
from attached import assert_untouched, tensors_edit
from edited_json import edited_json
from safetensors.torch import load_file
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail


def config_edit(**fields):
    return edited_json("adapter_config.json", **fields)


def config_text(text):
    return lambda folder: (folder / "adapter_config.json").write_bytes(text)


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
    "newer format": (config_edit(format_version=4), "format_version=4"),
    "older format": (config_edit(format_version=1), "format_version=1: expected 3"),
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
