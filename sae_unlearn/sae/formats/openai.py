"""Reader of OpenAI's sparse_autoencoder for GPT-2 small: `<place>/autoencoders/<layer>.pt`.

A folder has many files. Choose one with `subfolder="resid_post_mlp_v5_32k/autoencoders/6.pt"`.

    a = activation((x - pre_bias) @ W_enc + latent_bias),   x' = a @ W_dec + pre_bias

Stored: encoder.weight [d_sae, d_in], latent_bias, decoder.weight [d_in, d_sae], pre_bias, three statistics, the
activation's name, and k for TopK. With TopK (every published SAE of the residual stream, v5) `x` is the input without
each token's mean and standard deviation (`input_norm="layer"`); with ReLU it is the input. The older ones (v1, v4) read
the MLP or its output and are refused. The file is a pickle, which is read without unpickling (`torch_pickle.py`).

Source: Gao et al. 2024 (arXiv 2406.04093), https://github.com/openai/sparse_autoencoder (`model.py`, `paths.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.torch_zip import read_state_dict
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, one_of
from sae_unlearn.sae.formats.folding import fold_b_dec_into_b_enc
from sae_unlearn.sae.validate import check_shapes, require, transpose


FILE = re.compile(r"(\d+)\.pt")
PLACE = re.compile(r"(?P<place>mlp_post_act|resid_(?:delta|post)_(?:mlp|attn))(?:_v\d\w*)?")
TENSORS = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
OTHERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
ACTIVATION = ("activation", "activation_state_dict")


def layer_of_path(label: str) -> int | None:
    """Return the layer in ".../resid_post_mlp_v5_32k/autoencoders/6.pt"; None for another path.

    Raises:
        SAEFormatError: If the path names another hook point than the residual stream after a layer.
    """
    *parents, name = label.split("/")
    match = next(filter(None, map(PLACE.fullmatch, reversed(parents))), None)
    if match is None:
        return None
    if match["place"] != "resid_post_mlp":
        raise SAEFormatError(
            f"{label} reads {match['place']!r}, which is not the output of a decoder layer. Use 'resid_post_mlp'."
        )
    file = FILE.fullmatch(name)
    return int(file[1]) if file else None


def k_of(settings: Any, path: Path) -> int:
    """Return k of a TopK activation whose kept pre-activations pass a ReLU."""
    k, after = (settings.get("k"), settings.get("postact_fn", "ReLU")) if isinstance(settings, dict) else (None, None)
    if isinstance(k, bool) or not isinstance(k, int) or after != "ReLU":
        raise SAEFormatError(
            f"activation_state_dict in {path} has k={k!r:.40} and postact_fn={after!r:.40}: expected a whole number "
            "and 'ReLU'."
        )
    return k


def read(folder: SAEFolder) -> SAEWeights:
    """Return the folded weights of one file.

    Raises:
        SAEFormatError: If it is malformed, not of the residual stream, or has another activation.
    """
    layer = layer_of_path(folder.label)
    path = folder.file(folder.files[0])
    state = read_state_dict(path, TENSORS, (*OTHERS, *ACTIVATION))
    activation = state.get("activation", "ReLU")
    if not isinstance(activation, str):
        raise SAEFormatError(f"activation in {path} is a {type(activation).__name__}: expected a name such as 'ReLU'.")
    k = k_of(state.get("activation_state_dict"), path) if activation == "TopK" else None
    if activation not in ("ReLU", "TopK"):
        raise SAEFormatError(f"activation={activation!r} in {path}: expected 'ReLU' or 'TopK'.")
    stated = state.get("activation_state_dict")
    if activation == "ReLU" and isinstance(stated, dict) and stated.get("k") is not None:
        raise SAEFormatError(
            f"activation_state_dict in {path} has k={stated['k']!r:.40}, but the activation is 'ReLU'. Correct it."
        )
    encoder, b_enc, decoder, b_dec = require(state, TENSORS, path)
    W_enc, W_dec = transpose(encoder, TENSORS[0], path), transpose(decoder, TENSORS[2], path)
    named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    check_shapes(named, path)
    b_enc = fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    if k is None:
        return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "standard", layer=layer)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "topk", k=k, layer=layer, input_norm="layer")


READER = Reader(name="openai", layout="autoencoders/L.pt (one)", find=one_of(FILE), read=read)
