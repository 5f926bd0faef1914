"""Saving of an SAE in SAELens' on-disk format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path
from sae_unlearn.sae.formats.saelens_config import CONFIG, FOLDED, LAYER_NORM, WEIGHTS
from sae_unlearn.sae.formats.saelens_model import CENTERING, KWARGS


# The release of SAELens whose layout is saved. Without it SAELens reads the file as one from before version 6.
SAELENS_LAYOUT = "6.0.0"


def save_saelens(
    save_directory: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    *,
    architecture: str,
    k: int | None,
    layer: int | None,
    input_norm: str | None,
    neuronpedia_id: str | None,
) -> None:
    """Save `cfg.json` and `sae_weights.safetensors`. See `SparseAutoencoder.save_pretrained`.

    Args:
        save_directory (str or PathLike): The folder. It is created if it is missing.
        weights (Mapping[str, Tensor]): `W_enc` [d_in, d_sae], `b_enc` and `threshold` [d_sae], `W_dec` [d_sae, d_in],
            `b_dec` [d_in].
        architecture (str): As in `SparseAutoencoder`.
        k (int or None): As in `SparseAutoencoder`.
        layer (int or None): As in `SparseAutoencoder`.
        input_norm (str or None): As in `SparseAutoencoder`.
        neuronpedia_id (str or None): Id of its page at neuronpedia.org, if it has one.
    """
    from safetensors.torch import save_file  # late: keeps the import of this package light

    folder = as_path(save_directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: expected a folder. Pass a folder for {CONFIG} and {WEIGHTS}.")
    config = saelens_config(weights["W_enc"], architecture, k, layer, input_norm, neuronpedia_id)
    names = ["W_enc", "b_enc", "W_dec", "b_dec"] + (["threshold"] if config["architecture"] == "jumprelu" else [])
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensor = weights[name].detach().cpu().contiguous()
        shared = any(tensor.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in tensors.values())
        tensors[name] = tensor.clone() if shared else tensor  # safetensors writes no memory twice
    with staged(folder, key=CONFIG) as stage:
        save_file(tensors, stage / WEIGHTS)
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def saelens_config(
    W_enc: Tensor,
    architecture: str,
    k: int | None,
    layer: int | None,
    input_norm: str | None,
    neuronpedia_id: str | None,
) -> dict[str, Any]:
    """Return the `cfg.json` with which SAELens computes the same. Arguments as in `save_saelens`."""
    metadata: dict[str, Any] = {"sae_lens_version": SAELENS_LAYOUT, "training_architecture": architecture}
    if layer is not None:
        metadata["hook_name"] = f"blocks.{layer}.hook_resid_post"
    if neuronpedia_id:
        metadata["neuronpedia_id"] = neuronpedia_id
    if input_norm == "center":
        metadata |= {KWARGS: {CENTERING: True}, FOLDED: True}
    d_in, d_sae = W_enc.shape
    config: dict[str, Any] = {
        "architecture": architecture if architecture in ("standard", "topk") else "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": str(W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": LAYER_NORM if input_norm == "layer" else "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if architecture == "topk":
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    return config
