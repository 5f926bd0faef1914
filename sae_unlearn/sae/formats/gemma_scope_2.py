"""Reader of Gemma Scope 2: `params.safetensors`, and usually `config.json`.

The tensors are w_enc, b_enc, w_dec, b_dec and threshold. The folder names layer and hook point,
"resid_post/layer_9_width_16k_l0_small"; `config.json` names the same as a module of the Hugging Face model,
`hf_hook_point_in: "model.layers.9.output"`. Source of the layout:
https://huggingface.co/google/gemma-scope-2-270m-pt and SAELens' `gemma_3` loader.
"""

from __future__ import annotations

import re
from typing import Any

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import read_json_object
from sae_unlearn.sae.files.safetensors_header import read_tensors
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, layer_of_hook, needs
from sae_unlearn.sae.validate import check_shapes, check_stated_sizes, require


PARAMS = "params.safetensors"
CONFIG = "config.json"
TENSORS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")

LAYER = re.compile(r"layer_(\d+)_width_\w+")
OTHER_PLACE = re.compile(r"(attn_out|mlp_out|transcoder|clt|crosscoder)(_\w+)?")
RESID_POST = re.compile(r"resid_post(_\w+)?")


def layer_of_path(label: str) -> int | None:
    """Return the layer in ".../resid_post/layer_9_width_16k_l0_small"; None for another path.

    Raises:
        SAEFormatError: If the path names another hook point than the residual stream after a layer.
    """
    *parents, name = label.split("/")
    place = parents[-1] if parents else ""
    for part in (place, name):
        if OTHER_PLACE.fullmatch(part):
            raise SAEFormatError(
                f"{label} is a Gemma Scope 2 {part} model, which does not read the output of a decoder layer and "
                "rebuild it. Use a folder under 'resid_post' or 'resid_post_all'."
            )
    match = LAYER.fullmatch(name)
    return int(match[1]) if match and RESID_POST.fullmatch(place) else None


def layer_of_config(config: dict[str, Any], where: str) -> int | None:
    """Return the layer in `hf_hook_point_in`; None if the file does not name a hook point.

    Raises:
        SAEFormatError: If it has another architecture or hook point, or its output is not at its input (a transcoder).
    """
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise SAEFormatError(f"architecture={architecture!r} in {where}: expected 'jump_relu'.")
    if config.get("affine_connection"):
        raise SAEFormatError(f"{where} has an affine connection (a transcoder). Use an SAE under 'resid_post'.")
    place = config.get("hf_hook_point_in")
    if place is None:
        return None
    output = config.get("hf_hook_point_out") or place
    if output != place:
        raise SAEFormatError(f"{where} maps {place!r} to {output!r} (a transcoder). Use an SAE under 'resid_post'.")
    return layer_of_hook(place)


def read(folder: SAEFolder) -> SAEWeights:
    """Return the weights of a Gemma Scope 2 folder; they need no folding.

    Raises:
        SAEFormatError: If it is malformed, not a residual-stream SAE, or path and configuration name different layers.
    """
    layer, width, where = layer_of_path(folder.label), None, str(folder.path / CONFIG)
    if folder.has(CONFIG):
        raw = read_json_object(folder.file(CONFIG))
        stated, width = layer_of_config(raw, where), raw.get("width")
        if None not in (stated, layer) and stated != layer:
            raise SAEFormatError(f"{where} names layer {stated} but the folder {folder.label} names layer {layer}.")
        layer = layer if stated is None else stated
    path = folder.file(PARAMS)
    W_enc, b_enc, W_dec, b_dec, threshold = require(read_tensors(path, TENSORS), TENSORS, path)
    named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    check_stated_sizes(check_shapes(named, path), (None, width), path, where)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "jumprelu", threshold, layer=layer)


READER = Reader(
    name="gemma_scope_2", layout=f"{PARAMS} (+ {CONFIG})", find=needs(PARAMS, optional=(CONFIG,)), read=read
)
