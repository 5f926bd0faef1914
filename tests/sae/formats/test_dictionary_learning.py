"""The layouts of `dictionary_learning` compute what its classes compute, written down here plainly."""

import pytest
import torch
from family_equations import H, agree, double, load, topk
from family_folders import dictionary_state, write_dictionary
from sae_folders import D_IN


def dictionary(name, w, h):
    """dictionary_learning: encode and decode of its classes."""
    w = double(w)
    if "W_enc" in w:
        W_enc, b_enc, W_dec = w["W_enc"], w["b_enc"], w["W_dec"]
    else:
        W_enc, b_enc, W_dec = w["encoder.weight"].T, w.get("encoder.bias"), w["decoder.weight"].T
    if name == "AutoEncoder":
        norm = W_dec.norm(dim=1)  # normalize_decoder() of from_pretrained
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
        a = torch.relu((h - w["bias"]) @ W_enc + b_enc)
        return a, a @ W_dec + w["bias"]
    if name == "AutoEncoderNew":
        a = torch.relu(h @ W_enc + b_enc)
        return a, a @ W_dec + w["decoder.bias"]
    if name == "GatedAutoEncoder":
        x = (h - w["decoder_bias"]) @ W_enc
        a = (x + w["gate_bias"] > 0) * torch.relu(w["r_mag"].exp() * x + w["mag_bias"])
        return a, a @ W_dec + w["decoder_bias"]
    if name == "JumpReluAutoEncoder":
        pre = h @ W_enc + b_enc
        a = torch.relu(pre * (pre > w["threshold"]))
        return a, a @ W_dec + w["b_dec"]
    pre = torch.relu((h - w["b_dec"]) @ W_enc + b_enc)
    a = topk(pre, int(w["k"])) if name == "AutoEncoderTopK" else pre * (pre > w["threshold"])
    return a, a @ W_dec + w["b_dec"]


DICTIONARIES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk",
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(tmp_path, name, suffix):
    sae = load(write_dictionary(tmp_path, name, suffix=suffix))
    assert (sae.architecture, sae.layer, sae.source["format"]) == (DICTIONARIES[name], 9, "dictionary_learning")
    agree(sae, *dictionary(name, dictionary_state(name), H))


def test_dictionary_learning_reads_module_state_dicts_and_parameters(tmp_path):
    """What `torch.save(module.state_dict())` writes: an OrderedDict with version numbers; and strided views."""
    module = torch.nn.ModuleDict({"encoder": torch.nn.Linear(D_IN, 10), "decoder": torch.nn.Linear(10, D_IN, False)})
    state = module.state_dict()
    state["bias"] = torch.nn.Parameter(torch.arange(3.0 * D_IN)[1::3])
    sae = load(write_dictionary(tmp_path, "AutoEncoder", state))
    agree(sae, *dictionary("AutoEncoder", {name: tensor.detach() for name, tensor in state.items()}, H))


def test_decoder_rows_of_nearly_unit_norm_stay_as_they_are(tmp_path):
    state = dictionary_state("AutoEncoder")
    state["decoder.weight"] = state["decoder.weight"] / state["decoder.weight"].norm(dim=0)
    sae = load(write_dictionary(tmp_path, "AutoEncoder", state))
    assert torch.equal(sae.W_dec, state["decoder.weight"].double().T)
    assert torch.equal(sae.W_enc, state["encoder.weight"].double().T)


@pytest.mark.parametrize(
    ("folder", "trainer", "buffer", "layer"),
    [
        ("x", {}, {"io": "in"}, 8),
        ("x", {"submodule_name": "resid_post_layer_9"}, {"io": "out", "ctx_len": 128}, 9),
        ("x", {"submodule_name": "model.layers.9"}, ..., 9),
        ("resid_post_layer_9/trainer_2", {"submodule_name": None}, ..., 9),
        ("resid_out_layer9/10_32768", {"submodule_name": ...}, ..., 9),
        ("trainer_2", {"submodule_name": None}, ..., None),
    ],
)
def test_dictionary_learning_names_its_layer_in_the_configuration_or_the_path(tmp_path, folder, trainer, buffer, layer):
    assert load(write_dictionary(tmp_path / folder, buffer=buffer, **trainer)).layer == layer
