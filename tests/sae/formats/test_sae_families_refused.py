"""What a family publishes that cannot be read exactly, and files that lie, are refused by name."""

import pytest
import torch
from family_folders import (
    NORM_R1,
    QWEN,
    dictionary_state,
    goodfire_state,
    llama_scope_r1_state,
    llama_scope_state,
    openai_state,
    qwen_state,
    sparsify_state,
    write_dictionary,
    write_goodfire,
    write_llama_scope,
    write_llama_scope_r1,
    write_openai,
    write_qwen_scope,
    write_sparsify,
)

from sae_unlearn.sae import SAEFormatError, SparseAutoencoder


def refuse(folder, message, **kwargs):
    with pytest.raises(SAEFormatError, match=message):
        SparseAutoencoder.from_pretrained(folder, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_point_in": "blocks.9.hook_mlp_out", "hook_point_out": ...}, "hook_mlp_out.*'LXR'"),
        ({"hook_point_in": "blocks.9.hook_attn_out", "hook_point_out": "blocks.9.hook_attn_out"}, "hook_attn_out"),
        ({"hook_point_in": ..., "hook_point_out": ...}, "hook name is None"),
        ({"hook_point_out": "blocks.9.hook_mlp_out"}, "transcoder"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"act_fn": "batchtopk"}, "act_fn='batchtopk'"),
        ({"act_fn": ["jumprelu"]}, "act_fn="),
        ({"jump_relu_threshold": ...}, "jump_relu_threshold=None"),
        ({"act_fn": "relu"}, "jump_relu_threshold=0.52734375 in .*, but act_fn='relu'"),
        ({"jump_relu_threshold": float("nan")}, "jump_relu_threshold=nan"),
        ({"act_fn": "topk", "jump_relu_threshold": 0, "top_k": 2.5}, "top_k=2.5"),
        ({"act_fn": "topk", "jump_relu_threshold": 0, "top_k": 11}, "k=11"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"norm_activation": ...}, "norm_activation=None"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": {"in": 0}}, "one number > 0"),
        ({"dataset_average_activation_norm": {"in": 64.0, "out": 3.4}}, "one number > 0 for both"),
        ({"dataset_average_activation_norm": {"in": 10**400}}, "dataset_average_activation_norm.*: in=1000"),
        ({"sparsity_include_decoder_norm": ...}, "sparsity_include_decoder_norm=None"),
        ({"apply_decoder_bias_to_pre_encoder": "no"}, "apply_decoder_bias_to_pre_encoder='no'"),
        ({"use_decoder_bias": False}, "holds decoder.bias"),
        ({"d_sae": 11}, "has d_sae=10: expected 11"),
        ({"d_model": 7}, "has d_in=6: expected 7"),
    ],
)
def test_llama_scope_settings(tmp_path, change, message):
    refuse(write_llama_scope(tmp_path, **change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_point_in": "blocks.9.hook_mlp_out", "hook_point_out": ...}, "hook_mlp_out"),
        ({"hook_point_in": ...}, "hook name is None|maps None"),
        ({"hook_point_out": "blocks.9.hook_mlp_out"}, "transcoder"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"act_fn": "batchtopk"}, "act_fn='batchtopk'.*expected 'jumprelu'"),
        ({"act_fn": ["jumprelu"]}, "act_fn="),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"sparsity_include_decoder_norm": ...}, "sparsity_include_decoder_norm=None"),
        ({"use_decoder_bias": False}, "holds decoder.bias"),
        ({"expansion_factor": 2}, "has d_sae=10: expected 12"),
        ({"expansion_factor": 1e299}, "expansion_factor=1e\\+299"),
        ({"d_model": 7}, "has d_in=6: expected 7"),
    ],
)
def test_llama_scope_r1_settings(tmp_path, change, message):
    refuse(write_llama_scope_r1(tmp_path, **change), message)


@pytest.mark.parametrize("average", [torch.tensor(0.0), torch.tensor(-1.0), torch.ones(2), ...])
def test_llama_scope_r1_without_an_average_norm_that_is_one(tmp_path, average):
    message = f"lacks {NORM_R1}" if average is ... else f"{NORM_R1} in .* expected one number > 0"
    refuse(write_llama_scope_r1(tmp_path, llama_scope_r1_state() | {NORM_R1: average}), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transcode": True}, "transcode is on"),
        ({"skip_connection": True}, "skip_connection is on"),
        ({"signed": True}, "signed is on"),
        ({"gram_lookup": True}, "gram_lookup is on"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"k": ...}, "k=None"),
        ({"k": 11}, "k=11"),
        ({"num_latents": 11}, "has d_sae=10: expected 11"),
        ({"num_latents": 0, "expansion_factor": 2}, "has d_sae=10: expected 12"),
        ({"d_in": 7}, "has d_in=6: expected 7"),
    ],
)
def test_sparsify_settings(tmp_path, change, message):
    refuse(write_sparsify(tmp_path, **change), message)


@pytest.mark.parametrize(
    "place", ["layers.9.mlp", "layers.9.self_attn", "model.layers.9.mlp", "h.9.attn", "embed_tokens"]
)
def test_sparsify_of_other_places(tmp_path, place):
    refuse(write_sparsify(tmp_path / place), f"reads '{place}'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class in .* is 'CrossCoder'.*expected one of AutoEncoder"),
        ({"dict_class": ["AutoEncoder"]}, "dict_class"),
        ({"dict_class": "AutoEncoderNew"}, "holds bias"),
        ({"submodule_name": "mlp_out_layer_9"}, "mlp_out_layer_9"),
        ({"submodule_name": "attn_out_layer9"}, "attn_out_layer9"),
        ({"submodule_name": "model.layers.9.mlp"}, "model.layers.9.mlp"),
        ({"k": 3}, "k=3 in .*expected none with AutoEncoder"),
        ({"layer": 8}, "names layer 8 but the place is 'resid_post_layer_9'"),
        ({"dict_size": 11}, "has d_sae=10: expected 11"),
        ({"buffer": {"io": "in_and_out"}}, "io='in_and_out'"),
    ],
)
def test_dictionary_learning_settings(tmp_path, change, message):
    refuse(write_dictionary(tmp_path, **change), message)


def test_dictionary_learning_of_other_places_by_their_path(tmp_path):
    refuse(write_dictionary(tmp_path / "mlp_out_layer3/10_32768", submodule_name=...), "mlp_out_layer3")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_dictionary_learning_takes_k_from_both_files(tmp_path, suffix):
    refuse(write_dictionary(tmp_path, "AutoEncoderTopK", k=4, suffix=suffix), "k in .* is 4 but the weights say 3")


def test_qwen_scope_without_its_name_and_with_another(tmp_path):
    refuse(write_qwen_scope(tmp_path / "somewhere"), "does not tell k")
    refuse(write_qwen_scope(tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_50"), "has d_sae=2048: expected 65536")
    refuse(write_qwen_scope(tmp_path / "SAE-MLP-Qwen3-8B-Base-W2K-L0_3"), "Qwen-Scope 'MLP' SAE")


@pytest.mark.parametrize(
    "settings", [{}, {"k": True}, {"k": "32"}, {"k": 3, "postact_fn": "Identity"}, {"k": 11}, [3], ...]
)
def test_openai_topk_without_a_k_that_is_one(tmp_path, settings):
    state = openai_state(activation="TopK", activation_state_dict=settings)
    refuse(write_openai(tmp_path, state=state), r"activation_state_dict in .* has k=|k=11")


def test_openai_relu_with_a_k(tmp_path):
    state = openai_state(activation="ReLU", activation_state_dict={"k": 3})
    refuse(write_openai(tmp_path, state=state), "has k=3, but the activation is 'ReLU'")


def test_openai_of_other_activations_and_places(tmp_path):
    refuse(write_openai(tmp_path / "y", state=openai_state(activation="Tanh")), "activation='Tanh'.*'ReLU' or 'TopK'")
    refuse(write_openai(tmp_path / "x", state=openai_state(activation=("ReLU",))), "activation in .* is a tuple")
    for place in ("resid_post_attn_v5_32k", "resid_delta_mlp_v4", "resid_delta_attn_v5_128k", "mlp_post_act"):
        message = place.removesuffix("_v5_32k").removesuffix("_v4").removesuffix("_v5_128k")
        write_openai(tmp_path / place / "autoencoders")
        refuse(tmp_path, f"reads '{message}'", subfolder=f"{place}/autoencoders/6.pt")


def test_goodfire_with_two_encoders(tmp_path):
    state = goodfire_state() | {"encoder.bias": torch.zeros(10)}
    refuse(write_goodfire(tmp_path, state), "holds encoder_linear.weight and encoder.bias")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["conf.yaml", "latest_ckpt.safetensors"], "holds latest_ckpt.safetensors: a temporal SAE"),
        (["gpt2-small_L0_Hcat_z_lr1.20e-03_v9.pt", "gpt2-small_L0_Hcat_z_lr1.20e-03_v9_cfg.json"], "attention heads"),
    ],
)
def test_other_kinds_are_called_by_their_names(tmp_path, files, message):
    for file in files:
        (tmp_path / file).touch()
    refuse(tmp_path, message)


FAMILIES = {
    "llama_scope": (write_llama_scope, llama_scope_state, "encoder.weight", "decoder.bias"),
    "llama_scope_r1": (write_llama_scope_r1, llama_scope_r1_state, "encoder.weight", "decoder.bias"),
    "sparsify": (write_sparsify, sparsify_state, "encoder.weight", "b_dec"),
    "dictionary_learning": (write_dictionary, lambda: dictionary_state("AutoEncoder"), "encoder.weight", "bias"),
    "qwen_scope": (write_qwen_scope, qwen_state, "W_enc", "b_dec"),
    "goodfire": (write_goodfire, goodfire_state, "encoder_linear.weight", "decoder_linear.bias"),
    "openai": (write_openai, openai_state, "encoder.weight", "pre_bias"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_lie(tmp_path, family):
    write, make, matrix, bias = FAMILIES[family]

    def case(name, message, change):
        state = make() | change
        state = {key: tensor for key, tensor in state.items() if tensor is not ...}
        refuse(write(tmp_path / name / QWEN, state=state), message)

    case("missing", f"lacks {bias}", {bias: ...})
    case("unknown", "holds W_skip", {"W_skip": torch.zeros(6, 6)})
    case("shape", r"b_dec in .* expected shape \[6\] .*got \[7\]", {bias: torch.zeros(7)})
    case("matrix", rf"{matrix} in .* got shape \[3\]", {matrix: torch.zeros(3)})
    case("transposed", "expected shape", {matrix: make()[matrix].T.contiguous()})
    nan = make()[bias].clone()
    nan[2] = float("nan")
    case("nan", f"{bias} in .* got 1 NaN or infinite of 6 values", {bias: nan})
    case("integers", f"{bias} in .* (is|has dtype) ", {bias: torch.zeros(6, dtype=torch.int64)})
