"""Folders in the layouts of the families of published SAEs, with random weights."""

import json
from pathlib import Path

import torch
from sae_folders import D_IN, D_SAE, tensors
from safetensors.torch import save_file


QWEN = "SAE-Res-Qwen3-8B-Base-W2K-L0_3"
D_QWEN = 2048


def write_json(path, value):
    """`value` as JSON, without the keys that are `...`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


def save_tensors(path, state):
    """`state` as safetensors, without the tensors that are `...`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items() if tensor is not ...}, path)


def linear(seed=0, **kwargs):
    """encoder.weight [d_sae, d_in], encoder.bias, decoder.weight [d_in, d_sae], b_dec."""
    w = tensors(seed, **kwargs)
    return {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}, w["b_dec"]


def llama_scope_state(dtype=torch.float32):
    state, b_dec = linear(dtype=dtype)
    return state | {"decoder.bias": b_dec}


LLAMA_SCOPE = {
    "hook_point_in": "blocks.9.hook_resid_post",
    "hook_point_out": "blocks.9.hook_resid_post",
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": D_SAE / D_IN,
    "d_model": D_IN,
    "d_sae": D_SAE,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.52734375,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 17.125, "out": 17.125},
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "top_k": 3,
}


def write_llama_scope(folder, state=None, **config):
    write_json(Path(folder) / "hyperparams.json", LLAMA_SCOPE | config)
    save_tensors(Path(folder) / "checkpoints/final.safetensors", llama_scope_state() if state is None else state)
    return folder


LLAMA_SCOPE_R1 = {
    "sae_type": "sae",
    "hook_point_in": "blocks.9.hook_resid_post",
    "hook_point_out": "blocks.9.hook_resid_post",
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": D_SAE / D_IN,
    "d_model": D_IN,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "force_unit_decoder_norm": False,
    "use_glu_encoder": False,
    "top_k": 50,
}
NORM_R1 = f"dataset_average_activation_norm.{LLAMA_SCOPE_R1['hook_point_in']}"


def llama_scope_r1_state(dtype=torch.float32):
    """Llama Scope's, with the logarithms of the thresholds and the average norm of the inputs."""
    threshold = tensors(dtype=torch.float32)["threshold"]
    return llama_scope_state(dtype) | {"log_jumprelu_threshold": threshold.log(), NORM_R1: torch.tensor(4.125)}


def write_llama_scope_r1(folder, state=None, **config):
    write_json(Path(folder) / "config.json", LLAMA_SCOPE_R1 | config)
    save_tensors(Path(folder) / "sae_weights.safetensors", llama_scope_r1_state() if state is None else state)
    return folder


SPARSIFY = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": D_SAE,
    "k": 3,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_IN,
}


def sparsify_state(dtype=torch.float32):
    w = tensors(dtype=dtype)
    return {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}


def write_sparsify(folder, state=None, **config):
    write_json(Path(folder) / "cfg.json", SPARSIFY | config)
    save_tensors(Path(folder) / "sae.safetensors", sparsify_state() if state is None else state)
    return folder


def dictionary_state(name, dtype=torch.float32):
    """A state dict of one of dictionary_learning's classes."""
    w = tensors(dtype=dtype)
    state, b_dec = linear(dtype=dtype)
    scalar, k = torch.tensor(0.7), torch.tensor(3, dtype=torch.int)
    plain = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    gate = tensors(5, dtype=dtype)
    gated = {"gate_bias": gate["b_enc"], "mag_bias": w["b_enc"], "r_mag": gate["threshold"], "decoder_bias": b_dec}
    return {
        "AutoEncoder": state | {"bias": b_dec},
        "AutoEncoderNew": state | {"decoder.bias": b_dec},
        "GatedAutoEncoder": {key: state[key] for key in ("encoder.weight", "decoder.weight")} | gated,
        "JumpReluAutoEncoder": plain | {"threshold": w["threshold"]},
        "AutoEncoderTopK": state | {"b_dec": b_dec, "k": k, "threshold": scalar},
        "BatchTopKSAE": state | {"b_dec": b_dec, "k": k, "threshold": scalar},
        "MatryoshkaBatchTopKSAE": plain | {"k": k, "threshold": scalar, "group_sizes": torch.tensor([4, D_SAE - 4])},
    }[name]


def write_dictionary(folder, name="AutoEncoder", state=None, suffix=".pt", buffer=..., **trainer):
    folder = Path(folder)
    settings = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 9}
    settings |= {"k": 3} if "TopK" in str(name) else {}
    settings |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_9"} | trainer
    settings = {key: value for key, value in settings.items() if value is not ...}
    write_json(folder / "config.json", {"trainer": settings, "buffer": buffer})
    state = dictionary_state(name) if state is None else state
    if suffix == ".pt":
        torch.save(state, folder / "ae.pt")
    else:
        save_tensors(folder / "ae.safetensors", state)
    return folder


def qwen_state(dtype=torch.float32, seed=0):
    w = tensors(seed, dtype=dtype, d_sae=D_QWEN)
    return {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()} | {
        name: w[name] for name in ("b_enc", "b_dec")
    }


def write_qwen_scope(folder, layers=(9,), state=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        torch.save(qwen_state(seed=layer) if state is None else state, folder / f"layer{layer}.sae.pt")
    return folder


def goodfire_state(dtype=torch.float32, infix="_linear"):
    """With `infix=""`, qresearch's."""
    return {name.replace(".", f"{infix}."): tensor for name, tensor in llama_scope_state(dtype).items()}


def write_goodfire(folder, state=None, name="Llama-3.1-8B-Instruct-SAE-l9.pth"):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(goodfire_state() if state is None else state, folder / name)
    return folder


def openai_state(dtype=torch.float32, **change):
    state, b_dec = linear(dtype=dtype)
    state = {
        "encoder.weight": state["encoder.weight"],
        "latent_bias": state["encoder.bias"],
        "decoder.weight": state["decoder.weight"],
        "pre_bias": b_dec,
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
        "latents_activation_frequency": torch.ones(D_SAE),
        "latents_mean_square": torch.zeros(D_SAE),
        "activation": "ReLU",
        "activation_state_dict": {},
    } | change
    return {name: value for name, value in state.items() if value is not ...}


def write_openai(folder, layers=(6,), state=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        torch.save(openai_state() if state is None else state, folder / f"{layer}.pt")
    return folder
