"""Each family's layout computes what the family's own forward computes, written down here plainly."""

import math

import pytest
import torch
from family_equations import H, agree, double, load, topk
from family_folders import (
    LLAMA_SCOPE,
    LLAMA_SCOPE_R1,
    NORM_R1,
    QWEN,
    goodfire_state,
    llama_scope_r1_state,
    llama_scope_state,
    openai_state,
    qwen_state,
    sparsify_state,
    write_goodfire,
    write_llama_scope,
    write_llama_scope_r1,
    write_openai,
    write_qwen_scope,
    write_sparsify,
)
from sae_folders import D_IN, tensors, write_gemma_scope, write_saelens

from sae_unlearn.sae import SAEFormatError


def llama_scope(w, cfg, h):
    """lm_saes: standardize_parameters_of_dataset_norm, transform_to_unit_decoder_norm, encode, decode."""
    w = double(w)
    b_enc, W_dec, b_dec = w["encoder.bias"], w["decoder.weight"], w.get("decoder.bias", torch.zeros(D_IN).double())
    W_enc = w["encoder.weight"]
    if cfg["norm_activation"] == "dataset-wise":
        norms = cfg["dataset_average_activation_norm"]
        into, out = (math.sqrt(cfg["d_model"]) / norms[side] for side in ("in", "out"))
        b_enc, b_dec, W_dec = b_enc / into, b_dec / out, W_dec * into / out
    if cfg["sparsity_include_decoder_norm"]:
        norm = W_dec.norm(dim=0)
        W_enc, b_enc, W_dec = W_enc * norm[:, None], b_enc * norm, W_dec / norm
    if cfg["apply_decoder_bias_to_pre_encoder"]:
        h = h - b_dec
    pre = h @ W_enc.T + b_enc
    kind = "jumprelu" if cfg["act_fn"] == "topk" and cfg["jump_relu_threshold"] > 0 else cfg["act_fn"]
    a = topk(pre, cfg["top_k"])
    if kind != "topk":
        a = pre * pre.gt(cfg["jump_relu_threshold"] if kind == "jumprelu" else 0)
    return a, a @ W_dec.T + b_dec


@pytest.mark.parametrize(
    ("change", "architecture"),
    [
        ({}, "jumprelu"),
        ({"sparsity_include_decoder_norm": False}, "jumprelu"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "jumprelu"),
        ({"norm_activation": "inference"}, "jumprelu"),
        ({"act_fn": "topk"}, "jumprelu"),
        ({"act_fn": "topk", "jump_relu_threshold": 0.0}, "topk"),
        ({"act_fn": "relu", "jump_relu_threshold": 0.0}, "standard"),
    ],
)
def test_llama_scope(tmp_path, change, architecture):
    sae = load(write_llama_scope(tmp_path, **change))
    assert (sae.architecture, sae.layer, sae.source["format"]) == (architecture, 9, "llama_scope")
    agree(sae, *llama_scope(llama_scope_state(), LLAMA_SCOPE | change, H))


def test_llama_scope_without_a_decoder_bias_and_in_bfloat16(tmp_path):
    state = llama_scope_state(torch.bfloat16)
    del state["decoder.bias"]
    sae = load(write_llama_scope(tmp_path, state, use_decoder_bias=False, apply_decoder_bias_to_pre_encoder=...))
    agree(sae, *llama_scope(state, LLAMA_SCOPE, H))


def test_the_published_sizes_of_llama_scope_scale_as_its_threshold_says(tmp_path):
    """Layers 8 and 19 of LXR-8x as published: thresholds 0.2021 and 0.5273 are both 2.0 in units of scaled inputs."""
    for norm, threshold in ((6.3125, 0.2021484375), (17.125, 0.52734375)):
        norms = {"in": norm, "out": norm}
        sae = load(write_llama_scope(tmp_path, dataset_average_activation_norm=norms, jump_relu_threshold=threshold))
        assert sae.threshold[0].item() == threshold
        torch.testing.assert_close(sae.b_dec, tensors()["b_dec"].double() * norm / math.sqrt(D_IN), rtol=0, atol=1e-12)


def llama_scope_r1(w, cfg, h):
    """lm_saes: encode and decode as in training; its features, times the decoder's norms and divided by s, are ours."""
    w = double(w)
    W_dec, b_dec = w["decoder.weight"], w.get("decoder.bias", torch.zeros(D_IN).double())
    s = math.sqrt(D_IN) / w[NORM_R1].item() if cfg["norm_activation"] == "dataset-wise" else 1.0
    x = s * h - b_dec if cfg["apply_decoder_bias_to_pre_encoder"] else s * h
    hidden_pre = x @ w["encoder.weight"].T + w["encoder.bias"]
    norm = W_dec.norm(dim=0) if cfg["sparsity_include_decoder_norm"] else torch.ones(()).double()
    a = hidden_pre * (hidden_pre * norm).gt(w["log_jumprelu_threshold"].exp())
    return a * norm / s, (a @ W_dec.T + b_dec) / s


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"norm_activation": "inference"},
        {"act_fn": "JumpReLU"},
        {"hook_point_out": ...},
    ],
)
def test_llama_scope_r1(tmp_path, change):
    sae = load(write_llama_scope_r1(tmp_path, **change))
    assert (sae.architecture, sae.layer, sae.source["format"]) == ("jumprelu", 9, "llama_scope_r1")
    agree(sae, *llama_scope_r1(llama_scope_r1_state(), LLAMA_SCOPE_R1 | change, H))


def test_llama_scope_r1_without_a_decoder_bias_and_in_bfloat16(tmp_path):
    state = llama_scope_r1_state(torch.bfloat16)
    del state["decoder.bias"]
    sae = load(write_llama_scope_r1(tmp_path, state, use_decoder_bias=False))
    agree(sae, *llama_scope_r1(state, LLAMA_SCOPE_R1, H))


def test_another_configuration_beside_saelens_own_changes_nothing(tmp_path):
    write_saelens(tmp_path, tensors())
    (tmp_path / "config.json").write_text("{}")
    assert load(tmp_path).source["format"] == "saelens"


@pytest.mark.parametrize("name", ["layers.9", "model.layers.9", "h.9", "layers.9/seed1"])
def test_sparsify(tmp_path, name):
    sae = load(write_sparsify(tmp_path / name))
    assert (sae.architecture, sae.k, sae.layer, sae.source["format"]) == ("topk", 3, 9, "sparsify")
    w = double(sparsify_state())
    a = topk((H - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 3)
    agree(sae, a, a @ w["W_dec"] + w["b_dec"])


def test_sparsify_of_an_older_layout_leaves_the_layer_open(tmp_path):
    old = dict.fromkeys(("activation", "num_latents", "multi_topk", "skip_connection", "transcode"), ...)
    w = tensors(d_sae=2 * D_IN)
    state = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    sae = load(write_sparsify(tmp_path / "layer_9", state, expansion_factor=2, signed=False, **old))
    assert (sae.d_sae, sae.layer) == (2 * D_IN, None)


def test_qwen_scope_has_one_file_per_layer(tmp_path):
    folder = write_qwen_scope(tmp_path / QWEN, layers=(2, 9, 10))
    sae = load(folder, subfolder="layer9.sae.pt")
    assert (sae.architecture, sae.k, sae.layer, sae.source["format"]) == ("topk", 3, 9, "qwen_scope")
    assert sae.source["subfolder"] == "layer9.sae.pt"
    w = double(qwen_state(seed=9))
    values, indices = (H @ w["W_enc"].T + w["b_enc"]).topk(3, dim=-1)
    a = torch.zeros(len(H), len(w["b_enc"])).double().scatter(-1, indices, values)
    agree(sae, a, a @ w["W_dec"].T + w["b_dec"])
    with pytest.raises(SAEFormatError, match=r"subfolder='layer2\.sae\.pt' .*'layer10\.sae\.pt'.* \(3 "):
        load(folder)
    with pytest.raises(SAEFormatError, match=r"subfolder='layer9\.sae\.pt' or"):
        load(folder, subfolder="layer_9.sae.pt")


def test_openai_without_normalisation(tmp_path):
    folder = write_openai(tmp_path / "resid_post_mlp/autoencoders", layers=(5, 6))
    sae = load(tmp_path, subfolder="resid_post_mlp/autoencoders/6.pt")
    assert (sae.architecture, sae.layer, sae.source["format"]) == ("standard", 6, "openai")
    w = double(openai_state())
    a = torch.relu((H - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"])
    agree(sae, a, a @ w["decoder.weight"].T + w["pre_bias"])
    assert load(folder, subfolder="6.pt").layer == 6


def normalised(h):
    """OpenAI's LN: mean and standard deviation of each token, which are taken out."""
    mu = h.mean(dim=-1, keepdim=True)
    std = (h - mu).std(dim=-1, keepdim=True)
    return (h - mu) / (std + 1e-5), mu, std


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_openai_topk_reads_inputs_without_their_mean_and_deviation(tmp_path, dtype):
    state = openai_state(dtype, activation="TopK", activation_state_dict={"k": 3, "postact_fn": "ReLU"})
    write_openai(tmp_path / "resid_post_mlp_v5_32k/autoencoders", layers=(5, 6), state=state)
    sae = load(tmp_path, subfolder="resid_post_mlp_v5_32k/autoencoders/6.pt")
    assert (sae.architecture, sae.k, sae.layer, sae.input_norm) == ("topk", 3, 6, "layer")
    w, (x, mu, std) = double(state), normalised(3 * H + 1)
    a = topk((x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"], 3)
    agree(sae, a, (a @ w["decoder.weight"].T + w["pre_bias"]) * std + mu, 3 * H + 1)


@pytest.mark.parametrize(("infix", "suffix"), [("_linear", ".pth"), ("", ".pt")])
def test_goodfire_and_qresearch(tmp_path, infix, suffix):
    state = goodfire_state(torch.bfloat16, infix)
    sae = load(write_goodfire(tmp_path, state, f"Some-Model-8B-SAE-l12{suffix}"))
    assert (sae.architecture, sae.layer, sae.source["format"]) == ("standard", 12, "goodfire")
    encoder, b_enc, decoder, b_dec = double(state).values()
    a = torch.relu(H @ encoder.T + b_enc)
    agree(sae, a, a @ decoder.T + b_dec)


def test_folders_that_fit_are_named_in_reading_order_from_above(tmp_path):
    for layer in (2, 10):
        write_sparsify(tmp_path / f"layers.{layer}")
    write_llama_scope(tmp_path / "Llama3_1-8B-Base-L9R-8x")
    write_gemma_scope(tmp_path / "layer_3/width_16k")
    match = (
        r"Did you mean subfolder='Llama3_1-8B-Base-L9R-8x' or subfolder='layer_3/width_16k' or "
        r"subfolder='layers\.2' or subfolder='layers\.10'\? \(4 folders hold SAEs\)"
    )
    with pytest.raises(SAEFormatError, match=match):
        load(tmp_path)
