"""Tiny SAEs, and folders in the layouts in which SAEs are published."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sae_unlearn.sae import SparseAutoencoder


D_IN, D_SAE = 6, 10


def tensors(seed=0, dtype=torch.float32, d_in=D_IN, d_sae=D_SAE):
    """Random W_enc, b_enc, W_dec, b_dec, threshold."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "W_enc": normal(d_in, d_sae),
        "b_enc": normal(d_sae),
        "W_dec": normal(d_sae, d_in),
        "b_dec": normal(d_in),
        "threshold": normal(d_sae).abs() * 0.5,
    }


def tiny(architecture="jumprelu", dtype=torch.float32, **kwargs):
    """A random SparseAutoencoder."""
    weights = tensors(dtype=dtype)
    threshold = weights.pop("threshold")
    if architecture in ("jumprelu", "gated", "batchtopk"):
        kwargs.setdefault("threshold", threshold)
    if architecture == "topk":
        kwargs.setdefault("k", 3)
    return SparseAutoencoder(**weights, architecture=architecture, **kwargs)


def residual(*shape, dtype=torch.float32, seed=1):
    """Random activations [*shape, d_in]."""
    return torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def write_saelens(folder, weights, **config):
    """A folder as SAELens 6 writes it; keyword arguments change the configuration."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.9.hook_resid_post"},
        "architecture": "jumprelu",
    }
    cfg = {key: value for key, value in (cfg | config).items() if value is not ...}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    return folder


def write_gemma_scope(folder, weights=None):
    """A folder of Gemma Scope: one uncompressed `params.npz`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in (weights or tensors()).items()})
    return folder


def write_gemma_scope_2(folder, weights=None, config=None):
    """A folder of Gemma Scope 2: `params.safetensors` in lower case, and `config.json` where one is given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name.lower(): tensor for name, tensor in (weights or tensors()).items()}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
