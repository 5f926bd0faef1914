"""Reader of EleutherAI sparsify: `cfg.json` + `sae.safetensors`, a folder per module ("layers.9").

    a = the k largest of relu((h - b_dec) @ W_enc + b_enc),   h' = a @ W_dec + b_dec

Stored: encoder.weight [d_sae, d_in], encoder.bias, W_dec [d_sae, d_in], b_dec. The folder names the module whose output
is read, as in the Hugging Face model. The older "layer_9" does not name a module, so its layer is unknown. Source:
https://github.com/EleutherAI/sparsify (`sparse_coder.py`) and https://huggingface.co/EleutherAI/sae-llama-3-8b-32x
"""

from __future__ import annotations

import re
from typing import Any

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import integer, read_json_object
from sae_unlearn.sae.files.safetensors_header import read_tensors
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, layer_of_hook, needs
from sae_unlearn.sae.formats.folding import fold_b_dec_into_b_enc
from sae_unlearn.sae.validate import check_shapes, check_stated_sizes, require, transpose


CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")

# Settings that make it another kind of model, and their effect.
REFUSED = {
    "transcode": "the output is another place than the input (a transcoder)",
    "skip_connection": "the output also holds a linear map of the input",
    "embed_skip": "the output also holds a map of the embedding",
    "gram_lookup": "a table of n-grams is subtracted from the input",
    "signed": "features may be negative",
}
MODULE = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h)\.\d+(?:\..+)?|embed_tokens|wte")


def layer_of_path(label: str) -> int | None:
    """Return the layer in ".../layers.9"; None if the path names no module.

    Raises:
        SAEFormatError: If the path names another module than a decoder layer ("layers.9.mlp").
    """
    for part in reversed(label.split("/")):
        if MODULE.fullmatch(part):
            return layer_of_hook(part)
    return None


def check_config(raw: dict[str, Any], where: str) -> None:
    """Raise if a setting makes it another model than a TopK autoencoder."""
    for name, meaning in REFUSED.items():
        if raw.get(name):
            raise SAEFormatError(f"{name} is on in {where}: {meaning}. Use a TopK SAE on 'layers.L' without it.")
    activation = raw.get("activation", "topk")
    if activation != "topk":
        raise SAEFormatError(f"activation={activation!r} in {where}: expected 'topk'.")


def read(folder: SAEFolder) -> SAEWeights:
    """Return the folded weights of a sparsify folder.

    Raises:
        SAEFormatError: If it is malformed, not a residual-stream SAE, or has a setting that cannot be folded into the
            weights.
    """
    layer = layer_of_path(folder.label)
    where, path = str(folder.file(CONFIG)), folder.file(WEIGHTS)
    raw = read_json_object(folder.file(CONFIG))
    check_config(raw, where)
    k, d_in = integer(raw, "k", where), integer(raw, "d_in", where)
    d_sae = raw.get("num_latents") or d_in * integer(raw, "expansion_factor", where)
    encoder, b_enc, W_dec, b_dec = require(read_tensors(path, TENSORS), TENSORS, path)
    W_enc = transpose(encoder, TENSORS[0], path)
    named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    sizes = check_shapes(named, path)
    check_stated_sizes(sizes, (d_in, d_sae), path, where)
    b_enc = fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "topk", k=k, layer=layer)


READER = Reader(name="sparsify", layout=f"{CONFIG} + {WEIGHTS}", find=needs(CONFIG, WEIGHTS), read=read)
