"""From what a caller gives as `sae` to an SAE: the SAE itself, a name, or "auto"."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from sae_unlearn.backbone.layers import bare_model
from sae_unlearn.sae.autoencoder import SparseAutoencoder
from sae_unlearn.sae.directory.entry import PublishedSAE
from sae_unlearn.sae.directory.lookup import suggest, suggest_layers


AUTO = "auto"
logger = logging.getLogger(__name__)


def sae_for(sae: Any, model: nn.Module, layer: int | None = None) -> Any:
    """Return the SAE that `sae` means; anything but a text is returned as it is.

    Args:
        sae (SparseAutoencoder or str): An SAE; `"auto"` for the suggested one of the model; or what
            `SparseAutoencoder.from_pretrained` takes.
        model (nn.Module): The model that it has to belong to.
        layer (int, *optional*): 0-based decoder layer for `"auto"`.

    Raises:
        SAEFormatError: If none is known for the model, or it cannot be read.
    """
    if not isinstance(sae, str):
        return sae
    if sae != AUTO:
        return SparseAutoencoder.from_pretrained(sae)
    chosen = suggest(str(getattr(bare_model(model), "name_or_path", "") or ""), layer)
    logger.warning(about(chosen))
    return SparseAutoencoder.from_pretrained(chosen.name)


def saes_for(saes: Any, model: nn.Module, layer: int | None = None) -> list[Any]:
    """Return the SAEs that `saes` means: one or several of what `sae_for` takes.

    "auto" stands for suggested ones of several layers.

    Raises:
        SAEFormatError: If none is known for the model, or one cannot be read.
    """
    found = []
    for sae in [saes] if isinstance(saes, (str, SparseAutoencoder)) else saes:
        if isinstance(sae, str) and sae == AUTO:
            for chosen in suggest_layers(str(getattr(bare_model(model), "name_or_path", "") or ""), layer):
                logger.warning(about(chosen))
                found.append(SparseAutoencoder.from_pretrained(chosen.name))
        else:
            found.append(sae_for(sae, model, layer))
    return found


def about(chosen: PublishedSAE) -> str:
    """Return the choice of "auto" in words."""
    width = "" if chosen.width is None else f", {chosen.width:,} features"
    return f"sae='auto' takes {chosen.name}: {chosen.family}, output of layer {chosen.layer}{width}."
