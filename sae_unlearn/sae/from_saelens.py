"""A `sae_lens.SAE` in memory as a `SparseAutoencoder`, by its configuration and weights; SAELens is not imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae.formats.saelens import TENSORS, fold_saelens
from sae_unlearn.sae.formats.saelens_config import parse_config
from sae_unlearn.sae.loading import build
from sae_unlearn.sae.shapes import check_names


if TYPE_CHECKING:
    from sae_unlearn.sae.autoencoder import SparseAutoencoder


def convert_saelens(
    cls: type[SparseAutoencoder], sae: Any, device: torch.device | str | None, dtype: torch.dtype
) -> SparseAutoencoder:
    """Does the work of `SparseAutoencoder.from_saelens`; arguments and errors are described there."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnlearnError(f"dtype={dtype!r}; expected a floating torch.dtype such as torch.float32")
    where = f"the {type(sae).__name__} given"
    config: Any = getattr(sae, "cfg", None)
    if not callable(getattr(config, "to_dict", None)) or not callable(getattr(sae, "state_dict", None)):
        raise TypeError(
            f"expected a sae_lens.SAE, with cfg.to_dict() and state_dict(), got {type(sae).__name__}; "
            "for a folder or a repository use SparseAutoencoder.from_pretrained"
        )
    raw = dict(config.to_dict())
    metadata: Any = raw.get("metadata")
    if hasattr(metadata, "to_dict"):
        raw["metadata"] = metadata.to_dict()
    settings = parse_config(raw, None, f"the cfg of {where}")
    # Copies, so that the two never change each other; on the CPU, where float64 is always there.
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in sae.state_dict().items()}
    named = [name if t.is_floating_point() else f"{name} of {t.dtype}" for name, t in tensors.items()]
    check_names(named, TENSORS, where)
    weights = fold_saelens(tensors, settings, Path(where), f"the cfg of {where}")
    source = {"id": None, "architecture": weights.architecture, "format": "saelens"}
    return build(cls, weights, source, where, device, dtype)
