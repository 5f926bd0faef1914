"""Damaged files of SAEs of every family: a typed error or what the file says, and never a hang or another error.

What is drawn is drawn from fixed seeds, so that every run is the same. `CASES // 16` of each file and kind of damage,
and as many as `CASES` of the description inside a file of torch, which is what a pickle would be.
"""

import json
import random
import zipfile

import pytest
import torch
from damage import CASES, DAMAGE, cut, flipped, grown, in_time
from family_folders import (
    QWEN,
    dictionary_state,
    write_dictionary,
    write_goodfire,
    write_llama_scope,
    write_llama_scope_r1,
    write_openai,
    write_qwen_scope,
    write_sparsify,
)
from sae_folders import tensors, write_gemma_scope, write_gemma_scope_2, write_saelens
from safetensors import safe_open

from sae_unlearn import SAEFormatError, SparseAutoencoder, UnlearnError
from sae_unlearn.sae.files.torch_pickle import parse_pickle


FILES = {
    "Gemma Scope": (write_gemma_scope, "params.npz"),
    "Gemma Scope 2": (write_gemma_scope_2, "params.safetensors"),
    "SAELens' weights": (lambda folder: write_saelens(folder, tensors()), "sae_weights.safetensors"),
    "SAELens' configuration": (lambda folder: write_saelens(folder, tensors()), "cfg.json"),
    "dictionary_learning's weights": (write_dictionary, "ae.pt"),
    "dictionary_learning's configuration": (lambda folder: write_dictionary(folder, "BatchTopKSAE"), "config.json"),
    "OpenAI": (write_openai, "6.pt"),
    "Qwen-Scope": (write_qwen_scope, "layer9.sae.pt"),
    "Goodfire": (write_goodfire, "Llama-3.1-8B-Instruct-SAE-l9.pth"),
    "sparsify's weights": (write_sparsify, "sae.safetensors"),
    "sparsify's configuration": (write_sparsify, "cfg.json"),
    "Llama Scope's weights": (write_llama_scope, "checkpoints/final.safetensors"),
    "Llama Scope's configuration": (write_llama_scope, "hyperparams.json"),
    "Llama Scope R1's weights": (write_llama_scope_r1, "sae_weights.safetensors"),
    "Llama Scope R1's configuration": (write_llama_scope_r1, "config.json"),
}
WITH_CHECKSUMS = (".npz", ".pt", ".pth")


def weights_of(sae):
    return [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold]


def can_be_read(path):
    """Whether a safetensors file can be read by nothing of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return all(file.get_tensor(key) is not None for key in file.keys())  # noqa: SIM118
    except Exception:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(("write", "name"), FILES.values(), ids=FILES)
def test_a_damaged_sae_is_refused_or_what_its_file_says(write, name, damage, tmp_path):
    """A zip archive (`.npz`, `.pt`) has checksums, and is the same or refused. The formats without any may hold another
    finite SAE of the same form; what is read is then what the file holds."""
    folder = tmp_path / QWEN  # a name that tells one family its k, and the others nothing
    write(folder)
    path, draw = folder / name, random.Random(damage.__name__ + name)
    whole, sound = path.read_bytes(), SparseAutoencoder.from_pretrained(folder)
    refused = 0
    for case in range(CASES // 16):
        path.write_bytes(damage(whole, draw))
        try:
            with in_time(case):
                found = SparseAutoencoder.from_pretrained(folder)
        except UnlearnError:
            refused += 1
            continue
        weights = weights_of(found)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)
        assert (found.d_in, found.d_sae) == (sound.d_in, sound.d_sae)
        if name.endswith(WITH_CHECKSUMS):
            assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(sound), strict=True))
        elif name.endswith(".safetensors"):
            assert can_be_read(path)
    assert refused > 0 or damage is grown  # a zip archive may be followed by something


def contents(value, depth=0):
    """The kinds of value in what was parsed."""
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
    if isinstance(value, (dict, list, tuple)) and depth < 4 and not hasattr(value, "storage"):
        inner = value.values() if isinstance(value, dict) else value
        return {type(value).__name__}.union(*(contents(item, depth + 1) for item in inner))
    return {type(value).__name__}


PLAIN = {"dict", "list", "tuple", "str", "int", "float", "bool", "NoneType", "bytes", "StoredTensor", "Storage", "Name"}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_description_of_tensors_is_refused_or_plain_data(damage, tmp_path):
    """Past the archive's checksums, which whoever makes a file makes too: the instructions of the pickle."""
    torch.save(dictionary_state("AutoEncoderTopK") | {"activation_state_dict": {"k": 3}}, tmp_path / "ae.pt")
    with zipfile.ZipFile(tmp_path / "ae.pt") as archive:
        whole = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    draw, refused = random.Random(damage.__name__), 0
    for case in range(CASES):
        data = damage(whole, draw)
        try:
            with in_time(case):
                found = parse_pickle(data, "ae.pt")
        except SAEFormatError:
            refused += 1
            continue
        assert contents(found) <= PLAIN
    assert refused > 0 or damage is grown  # nothing is read beyond the last instruction


def rewritten(path, data):
    """The torch file at `path` with another description, and checksums that are right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, stored in members.items():
            archive.writestr(name, data if name.endswith("data.pkl") else stored)


@pytest.mark.parametrize("damage", [flipped, cut], ids=["flipped", "cut"])
def test_a_torch_file_whose_description_was_changed_is_refused_or_a_finite_sae(damage, tmp_path):
    write_dictionary(tmp_path)
    path = tmp_path / "ae.pt"
    with zipfile.ZipFile(path) as archive:
        whole = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    draw, refused = random.Random(damage.__name__), 0
    for case in range(CASES // 4):
        rewritten(path, damage(whole, draw))
        try:
            with in_time(case):
                found = SparseAutoencoder.from_pretrained(tmp_path)
        except UnlearnError:
            refused += 1
            continue
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(found))
        assert found.d_in == json.loads((tmp_path / "config.json").read_text())["trainer"]["activation_dim"]
    assert refused > 0
