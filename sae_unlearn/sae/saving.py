"""Writing an SAE in SAELens' on-disk format."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path
from sae_unlearn.sae.formats.saelens_config import CONFIG, LAYER_NORM, WEIGHTS


if TYPE_CHECKING:
    from torch import Tensor

    from sae_unlearn.sae.autoencoder import SparseAutoencoder

# The release of SAELens whose layout is written; without it SAELens reads the file as one from before version 6.
SAELENS_LAYOUT = "6.0.0"


def save_saelens(sae: SparseAutoencoder, save_directory: str | os.PathLike[str]) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors`; see `SparseAutoencoder.save_pretrained`."""
    from safetensors.torch import save_file  # late: keeps the import of this package light

    folder = as_path(save_directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; pass a folder to write {CONFIG} and {WEIGHTS} into")
    config = saelens_config(sae)
    names = ["W_enc", "b_enc", "W_dec", "b_dec"] + (["threshold"] if config["architecture"] == "jumprelu" else [])
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensor = getattr(sae, name).detach().cpu().contiguous()
        shared = any(tensor.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in tensors.values())
        tensors[name] = tensor.clone() if shared else tensor  # safetensors writes no memory twice
    with staged(folder, key=CONFIG) as stage:
        save_file(tensors, stage / WEIGHTS)
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def saelens_config(sae: SparseAutoencoder) -> dict[str, Any]:
    """The `cfg.json` under which SAELens computes what `sae` computes."""
    architecture = sae.architecture if sae.architecture in ("standard", "topk") else "jumprelu"
    metadata: dict[str, Any] = {"sae_lens_version": SAELENS_LAYOUT, "training_architecture": sae.architecture}
    if sae.layer is not None:
        metadata["hook_name"] = f"blocks.{sae.layer}.hook_resid_post"
    if sae.source.get("neuronpedia_id"):
        metadata["neuronpedia_id"] = sae.source["neuronpedia_id"]
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none" if sae.input_norm is None else LAYER_NORM,
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config
