"""Folders of an SAE that lie, with 6 inputs and 10 features where nothing else is said; see `malicious_guardrails`."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import torch
from lies import HUGE, Payload, trace_of
from sae_folders import D_IN, D_SAE, tensors, write_gemma_scope, write_saelens


def npy(array, **claims):
    """The bytes of a `.npy` file, whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | claims
    )
    return file.getvalue() + array.tobytes()


def npz(**members):
    def write(folder):
        arrays = {f"{name}.npy": npy(tensor.numpy()) for name, tensor in tensors().items()}
        with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (arrays | {f"{name}.npy": data for name, data in members.items()}).items():
                archive.writestr(name, data)

    return write


def npz_member(name, data):
    def write(folder):
        write_gemma_scope(folder)
        with zipfile.ZipFile(folder / "params.npz", "a") as archive:
            archive.writestr(name, data(folder))

    return write


def zip_bomb(folder):
    npz(b_enc=npy(np.zeros(0, np.float32), shape=(16 << 20,)) + bytes(64 << 20))(folder)
    assert (folder / "params.npz").stat().st_size < 100_000


def npz_is_a_pickle(folder):
    (folder / "params.npz").write_bytes(pickle.dumps(Payload(trace_of(folder))))


def npz_of_objects(folder):
    data = npy(np.zeros(0), descr="|O", shape=(D_SAE,)) + pickle.dumps(Payload(trace_of(folder)))
    npz(b_enc=data)(folder)


def torch_pickle(folder):
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D_IN, "dict_size": D_SAE, "layer": 9}
    trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_9"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save({"bias": Payload(trace_of(folder))}, folder / "ae.pt")


def saelens(changed=None, **fields):
    return lambda folder: write_saelens(folder, tensors() | (changed or {}), **fields)


def saelens_bytes(name, data):
    def write(folder):
        write_saelens(folder, tensors())
        (folder / name).write_bytes(data)

    return write


def llama_scope(**fields):
    """A configuration of Llama Scope, beside weights that nobody comes to read."""
    sound = {"hook_point_in": "blocks.9.hook_resid_post", "act_fn": "jumprelu", "jump_relu_threshold": 0.5}
    sound |= {"use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "top_k": 3, "d_model": D_IN}
    sound |= {"sparsity_include_decoder_norm": True, "norm_activation": "dataset-wise"}
    sound |= {"dataset_average_activation_norm": {"in": 17.0, "out": 17.0}}

    def write(folder):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "final.safetensors").write_bytes(b"")
        (folder / "hyperparams.json").write_text(json.dumps(sound | fields))

    return write


def saelens_link(folder):
    write_saelens(folder, tensors())
    secret = folder.parent / "secret.safetensors"
    (folder / "sae_weights.safetensors").rename(secret)
    (folder / "sae_weights.safetensors").symlink_to(secret)


def pipe_in_place_of(name, write):
    def lie(folder):
        write(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return lie


def npz_by_lzma(folder):
    """NumPy never writes it, and its unpacker takes the memory that the archive asks for."""
    write_gemma_scope(folder)
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, tensor in tensors().items():
            archive.writestr(f"{name}.npy", npy(tensor.numpy()))


def saelens_text(text):
    def write(folder):
        path = write_saelens(folder, tensors()) / "cfg.json"
        path.write_text(path.read_text().removesuffix("}") + f", {text}}}")

    return write


def topk_of(k):
    return lambda folder: write_saelens(
        folder, {n: t for n, t in tensors().items() if n != "threshold"}, architecture="topk", k=k
    )


def scaled_by(text):
    def write(folder):
        write_saelens(folder, tensors(), normalize_activations="expected_average_only_in")
        (folder / "activation_scaler.json").write_text(f'{{"scaling_factor": {text}}}')

    return write


SAES = {
    "SAE: configuration a pipe": (pipe_in_place_of("cfg.json", saelens()), "not a regular file"),
    "SAE: weights a pipe": (pipe_in_place_of("sae_weights.safetensors", saelens()), "not a regular file"),
    "SAE: archive a pipe": (pipe_in_place_of("params.npz", write_gemma_scope), "not a regular file"),
    "SAE: archive of a kind that NumPy does not write": (npz_by_lzma, "is packed in a way"),
    "SAE: a key said twice": (saelens_text('"apply_b_dec_to_input": false'), "'apply_b_dec_to_input' twice"),
    "SAE: a text for a switch": (saelens(apply_b_dec_to_input="false"), "apply_b_dec_to_input=.false."),
    "SAE: k without end": (topk_of(HUGE), "k="),
    "SAE: k a switch": (topk_of(True), "k=True"),
    "SAE: scale without end": (scaled_by("1" + "0" * 400), "scaling_factor="),
    "SAE: scale NaN": (scaled_by("NaN"), "scaling_factor=nan"),
    "SAE: a layer of 5000 digits": (
        saelens(metadata={"hook_name": f"blocks.{'9' * 5000}.hook_resid_post"}),
        "not the output of a decoder layer",
    ),
    "SAE: a layer in other people's digits": (
        saelens(metadata={"hook_name": "blocks.\u0669.hook_resid_post"}),
        "not the output of a decoder layer",
    ),
    "SAE: a model's width without end": (llama_scope(d_model=HUGE), "d_model="),
    "SAE: escape codes for a tensor": (saelens({"\x1b[2J": torch.zeros(2)}), "expected only"),
    "SAE: zip bomb": (zip_bomb, "zip bomb"),
    "SAE: npz that is a pickle": (npz_is_a_pickle, "not a valid"),
    "SAE: npz of pickled objects": (npz_of_objects, "dtype object"),
    "SAE: npz with a pickle beside": (
        npz_member("evil.pkl", lambda folder: pickle.dumps(Payload(trace_of(folder)))),
        "expected only",
    ),
    "SAE: npz with a path out of it": (npz_member("../../W_enc.npy", lambda folder: b""), "expected only"),
    "SAE: array of 2**60 numbers": (npz(b_enc=npy(np.zeros(D_SAE, np.float32), shape=(1 << 60,))), " shape "),
    "SAE: array header that is code": (
        npz(b_enc=b"\x93NUMPY\x01\x00" + struct.pack("<H", 24) + b"__import__('os').abort()"),
        "not a valid",
    ),
    "SAE: array header that nests": (
        npz(b_enc=b"\x93NUMPY\x01\x00" + struct.pack("<H", 9001) + b"-" * 9000 + b"1"),
        "no valid header",
    ),
    "SAE: torch file that runs": (torch_pickle, "a dict of plain tensors"),
    "SAE: NaN": (saelens({"W_enc": torch.full((D_IN, D_SAE), torch.nan)}), "NaN or infinite"),
    "SAE: infinite threshold": (saelens({"threshold": torch.full((D_SAE,), torch.inf)}), "NaN or infinite"),
    "SAE: shapes of another SAE": (saelens({"W_dec": torch.zeros(D_SAE, D_IN + 1)}), "expected shape"),
    "SAE: a width it has not": (saelens(d_in=2**40), "d_in"),
    "SAE: of another place": (saelens(metadata={"hook_name": "__import__('os')"}), "hook_name|place|hook"),
    "SAE: configuration too deep": (saelens_bytes("cfg.json", b"[" * 100_000), "cfg.json"),
    "SAE: configuration too large": (saelens_bytes("cfg.json", b" " * (2 << 20)), "cfg.json"),
    "SAE: weights that are a pickle": (
        saelens_bytes("sae_weights.safetensors", pickle.dumps({"W_enc": 1})),
        "not a valid safetensors",
    ),
    "SAE: weights linked from elsewhere": (saelens_link, "is a link to"),
}
