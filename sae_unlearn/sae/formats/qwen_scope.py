"""Reader of Qwen-Scope: one file per layer, `layer9.sae.pt`.

A folder has all layers. Choose one with `subfolder="layer9.sae.pt"`.

    a = the k largest of h @ W_enc + b_enc,   h' = a @ W_dec + b_dec

Stored: W_enc [d_sae, d_in], W_dec [d_in, d_sae], b_enc, b_dec; b_dec is not subtracted from the input. The file has
neither k nor a configuration: they are in the repository's name ("SAE-Res-Qwen3-8B-Base-W64K-L0_50": 65536 features,
k=50, residual stream after each layer). The file is a pickle, which is read without unpickling (`torch_pickle.py`). If
fewer than k pre-activations are positive, the published code keeps negative ones; this library keeps 0, as SAELens.

Source: https://huggingface.co/Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50 and SAELens' `qwen_scope` loader.
"""

from __future__ import annotations

import re

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.torch_zip import read_state_dict
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, one_of
from sae_unlearn.sae.validate import check_shapes, check_stated_sizes, require, transpose


FILE = re.compile(r"layer(\d+)\.sae\.pt")
REPOSITORY = re.compile(r"SAE-(?P<place>[A-Za-z]+)-[\w.-]+-W(?P<thousands>\d+)K-L0_(?P<k>\d+)")
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def width_and_k(label: str) -> tuple[int, int]:
    """Return `(d_sae, k)` from the repository's name in `label`.

    Raises:
        SAEFormatError: If the label has no such name, or it is not of the residual stream.
    """
    match = next(filter(None, map(REPOSITORY.search, reversed(label.split("/")))), None)
    if match is None:
        raise SAEFormatError(
            f"{label} does not tell k, which Qwen-Scope gives in the repository's name only. "
            "Keep that name in the path, e.g. 'SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer9.sae.pt'."
        )
    if match["place"] != "Res":
        raise SAEFormatError(
            f"{label} is a Qwen-Scope {match['place']!r} SAE, which does not read the output of a decoder layer. "
            "Use an 'SAE-Res-...' repository."
        )
    return 1024 * int(match["thousands"]), int(match["k"])


def read(folder: SAEFolder) -> SAEWeights:
    """Return the weights of one layer of Qwen-Scope; they need no folding.

    Raises:
        SAEFormatError: If it is malformed, k is unknown, or sizes differ from the repository's name.
    """
    (name,) = folder.files
    match = FILE.fullmatch(name)
    if match is None:
        raise SAEFormatError(f"{name} is not called layerL.sae.pt: expected Qwen-Scope's own name for it.")
    d_sae, k = width_and_k(folder.label)
    path = folder.file(name)
    encoder, decoder, b_enc, b_dec = require(read_state_dict(path, TENSORS), TENSORS, path)
    W_enc, W_dec = transpose(encoder, "W_enc", path), transpose(decoder, "W_dec", path)
    named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    sizes = check_shapes(named, path)
    check_stated_sizes(sizes, (None, d_sae), path, folder.label)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "topk", k=k, layer=int(match[1]))


READER = Reader(name="qwen_scope", layout="layerL.sae.pt (one)", find=one_of(FILE), read=read)
