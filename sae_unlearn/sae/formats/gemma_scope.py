"""Reader of Gemma Scope: `params.npz` with W_enc, b_enc, W_dec, b_dec, threshold.

It has no configuration file. The folder names the layer ("layer_3/width_16k/average_l0_142"), and the repository's name
the hook point ("gemma-scope-2b-pt-res"). Source: Lieberum et al. 2024 (arXiv 2408.05147) and
https://huggingface.co/google/gemma-scope-2b-pt-res
"""

from __future__ import annotations

import re

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.npz import read_arrays
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, needs
from sae_unlearn.sae.validate import check_shapes, require


PARAMS = "params.npz"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

# Repositories of other hook points, also under the names of the Hub's cache.
OTHER_PLACE = re.compile(r"gemma-scope-[\w.-]*-(mlp|att|transcoders?)(?:-[\w.-]*)?")
LAYER = re.compile(r"layer_(\d+)")


def layer_of(label: str) -> int | None:
    """Return the layer in a path such as ".../layer_3/width_16k/average_l0_142"; None if it has none.

    Raises:
        SAEFormatError: If the path names another hook point than the residual stream after a layer.
    """
    parts = label.split("/")
    for part in parts:
        if match := OTHER_PLACE.search(part):
            raise SAEFormatError(
                f"{label} is a Gemma Scope {match[1]} SAE, which does not read the output of a decoder layer. "
                "Use a '-res' repository such as google/gemma-scope-2b-pt-res."
            )
    if "embedding" in parts:
        raise SAEFormatError(f"{label} reads the token embedding. Use a folder that starts with 'layer_'.")
    layers = [int(match[1]) for part in parts if (match := LAYER.fullmatch(part))]
    return layers[-1] if layers else None


def read(folder: SAEFolder) -> SAEWeights:
    """Return the weights of a Gemma Scope folder; they need no folding.

    Raises:
        SAEFormatError: If it is malformed, or not a residual-stream SAE.
    """
    layer = layer_of(folder.label)
    path = folder.file(PARAMS)
    tensors = read_arrays(path, TENSORS)
    W_enc, b_enc, W_dec, b_dec, threshold = require(tensors, TENSORS, path)
    check_shapes(tensors, path)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "jumprelu", threshold, layer=layer)


READER = Reader(name="gemma_scope", layout=PARAMS, find=needs(PARAMS), read=read)
