"""Reader of saprmarks' dictionary_learning: `config.json` + `ae.pt`.

Each run has a folder such as "resid_post_layer_8/trainer_2". `config.json` names the class under `trainer.dict_class`;
with `x = h - b_dec` where the class subtracts it:

    AutoEncoder                     a = relu(pre), after its loader has given every decoder row unit norm
    AutoEncoderNew                  a = relu(pre), of h itself
    GatedAutoEncoder                a = 1[pi + b_gate > 0] * relu(pi * exp(r_mag) + b_mag),  pi = x @ W_enc
    JumpReluAutoEncoder             a = relu(pre) * 1[pre > threshold], of h itself
    AutoEncoderTopK                 a = the k largest of relu(pre)
    BatchTopKSAE, Matryoshka...     a = relu(pre) * 1[pre > threshold], one threshold for all

`ae.pt` is a pickle; it is read without unpickling (`torch_pickle.py`). The same tensors in `ae.safetensors` are read
too, and preferred. Source: https://github.com/saprmarks/dictionary_learning (`dictionary.py`, `trainers/`) as of its
release 0.1.0; before that, gated and JumpReLU features came multiplied by |W_dec[j]|, with the same reconstruction.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import integer, read_json_object
from sae_unlearn.sae.files.safetensors_header import read_tensors
from sae_unlearn.sae.files.torch_zip import read_state_dict
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, layer_of_hook
from sae_unlearn.sae.formats.folding import fold_b_dec_into_b_enc, fold_decoder_norm, fold_gate
from sae_unlearn.sae.validate import check_shapes, check_stated_sizes, require, transpose


CONFIG = "config.json"
WEIGHTS = ("ae.safetensors", "ae.pt")  # the first that exists is read
COUNTS = ("k", "group_sizes")


@dataclass(frozen=True)
class DictionaryClass:
    """One class of the family.

    Attributes:
        architecture (str): This library's name for it.
        names (dict[str, str]): Stored name -> ours; a "*.weight" is the transpose of ours.
        subtract_b_dec (bool, *optional*, defaults to True): True if b_dec is subtracted from the input.
        unit_decoder (bool, *optional*, defaults to False): True if the family's loader scales decoder rows to unit
            norm, unless they nearly have it.
        counts (tuple[str, ...], *optional*, defaults to ()): Integers stored with the weights.
        optional (tuple[str, ...], *optional*, defaults to ()): Stored names that do not change the features.
    """

    architecture: str
    names: dict[str, str]
    subtract_b_dec: bool = True
    unit_decoder: bool = False
    counts: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
GATED = {name: LINEAR[name] for name in ("encoder.weight", "decoder.weight")} | {"decoder_bias": "b_dec"}
CLASSES = {
    "AutoEncoder": DictionaryClass("standard", LINEAR | {"bias": "b_dec"}, unit_decoder=True),
    "AutoEncoderNew": DictionaryClass("standard", LINEAR | {"decoder.bias": "b_dec"}, subtract_b_dec=False),
    "GatedAutoEncoder": DictionaryClass(
        "gated", GATED | {"gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
    ),
    "JumpReluAutoEncoder": DictionaryClass("jumprelu", PLAIN, subtract_b_dec=False),
    "AutoEncoderTopK": DictionaryClass("topk", LINEAR | {"b_dec": "b_dec"}, counts=("k",), optional=("threshold",)),
    "BatchTopKSAE": DictionaryClass("batchtopk", LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, counts=("k",)),
    "MatryoshkaBatchTopKSAE": DictionaryClass("batchtopk", PLAIN, counts=COUNTS),
}

# Names of hook points in the configuration or in a folder: "resid_post_layer_8", "mlp_out_layer3".
PLACE = re.compile(r"(?P<place>[a-z_]+?)_?layer_?(?P<layer>\d{1,4})", re.ASCII)
RESIDUAL = ("resid", "resid_post", "resid_out", "residual")
ELSEWHERE = re.compile(r"mlp|att|embed|head|delta|mid")


def find(names: Collection[str]) -> tuple[str, ...] | None:
    """Return the configuration and one file of weights."""
    weights = [name for name in WEIGHTS if name in names]
    return (CONFIG, weights[0]) if CONFIG in names and weights else None


def layer_of(trainer: dict[str, Any], buffer: Any, label: str, where: str) -> int | None:
    """Return the layer whose output is read; None if neither configuration nor path names it.

    Raises:
        SAEFormatError: If it does not read the residual stream, or two layers are named.
    """
    named = trainer.get("submodule_name")
    parts = [named] if isinstance(named, str) else label.split("/")
    found = [match for part in parts if (match := PLACE.fullmatch(part))]
    for match in found:
        if ELSEWHERE.search(match["place"]):
            raise SAEFormatError(
                f"{where} reads {match[0]!r}, which is not the output of a decoder layer; "
                "only residual-stream SAEs are supported ('resid_post_layer_L')."
            )
    match = next((match for match in reversed(found) if match["place"] in RESIDUAL), None)
    if match is None:
        return layer_of_hook(named) if isinstance(named, str) else None
    layer = int(match["layer"])
    if trainer.get("layer") not in (None, layer):
        raise SAEFormatError(
            f"{where} names layer {trainer['layer']} but the place is {match[0]!r}. Correct one of them."
        )
    io = buffer.get("io", "out") if isinstance(buffer, dict) else "out"
    if io not in ("in", "out"):
        raise SAEFormatError(f"io={io!r} in {where}: expected 'in' or 'out' (anything else is a transcoder).")
    return layer_of_hook(f"blocks.{layer}.hook_resid_{'post' if io == 'out' else 'pre'}")


def read_weights(path: Path, kind: DictionaryClass) -> dict[str, Any]:
    """Return tensors by this library's names, with [d_in, d_sae] and [d_sae, d_in] matrices, and counts."""
    stored = tuple(kind.names)
    others = (*kind.counts, *kind.optional)
    reader = read_tensors if path.suffix == ".safetensors" else read_state_dict
    state = reader(path, stored, others)
    tensors = dict(zip(kind.names.values(), require(state, stored, path), strict=True))
    for name, ours in kind.names.items():
        if name.endswith(".weight"):
            tensors[ours] = transpose(tensors[ours], name, path)
    return tensors | {name: state[name] for name in kind.counts if name in state}


def k_of(tensors: dict[str, Any], trainer: dict[str, Any], where: str) -> int:
    """Return k of the configuration. Raise SAEFormatError if the weights hold another k."""
    k = integer(trainer, "k", where)
    stored = tensors.get("k", k)
    stored = stored.item() if isinstance(stored, torch.Tensor) and stored.numel() == 1 else stored
    if not isinstance(stored, int) or stored != k:
        said = stored if isinstance(stored, int) else type(stored).__name__
        raise SAEFormatError(f"k in {where} is {k} but the weights say {said}. Correct the configuration.")
    return k


def read(folder: SAEFolder) -> SAEWeights:
    """Return the folded weights of a dictionary_learning folder.

    Raises:
        SAEFormatError: If it is malformed, has an unknown class, does not read the residual stream, or has a setting
            that cannot be folded into the weights.
    """
    where, path = str(folder.file(CONFIG)), folder.file(folder.files[1])
    raw = read_json_object(folder.file(CONFIG))
    trainer = raw.get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or not isinstance(name, str) or name not in CLASSES:
        raise SAEFormatError(f"trainer.dict_class in {where} is {name!r}: expected one of {', '.join(CLASSES)}.")
    kind, layer = CLASSES[name], layer_of(trainer, raw.get("buffer"), folder.label, where)
    if "k" not in kind.counts and trainer.get("k") is not None:
        raise SAEFormatError(f"k={trainer['k']!r:.40} in {where}: expected none with {name}. Correct one of them.")
    tensors = read_weights(path, kind)
    counts = {key: tensors.pop(key) for key in kind.counts if key in tensors}
    W_enc, W_dec, b_dec = (tensors[key] for key in ("W_enc", "W_dec", "b_dec"))
    threshold = tensors.get("threshold")
    if threshold is not None and threshold.ndim == 0:
        threshold = tensors["threshold"] = threshold.expand(W_enc.shape[-1:])
    sizes = check_shapes(tensors, path)
    check_stated_sizes(sizes, (trainer.get("activation_dim"), trainer.get("dict_size")), path, where)
    if kind.architecture == "gated":
        W_enc, b_enc, threshold = fold_gate(W_enc, tensors["b_gate"], tensors["b_mag"], tensors["r_mag"])
    else:
        b_enc = tensors["b_enc"]
    if kind.subtract_b_dec:
        b_enc = fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    if kind.unit_decoder and not torch.allclose(W_dec.norm(dim=1), W_dec.new_ones(())):
        W_enc, b_enc, W_dec = fold_decoder_norm(W_enc, b_enc, W_dec)
    k = k_of(counts, trainer, where) if kind.architecture == "topk" else None
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, kind.architecture, threshold, k, layer)


READER = Reader(name="dictionary_learning", layout=f"{CONFIG} + {' or '.join(WEIGHTS)}", find=find, read=read)
