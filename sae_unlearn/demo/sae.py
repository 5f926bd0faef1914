"""The sparse autoencoder that the project ships for its demo model."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from sae_unlearn.sae import SparseAutoencoder

DEMO_SAE_NAME = "gemma-3-270m-sae-l9"
"""The folder, beside this file, that holds the SAE in SAELens' layout."""


def load_demo_sae() -> SparseAutoencoder:
    """Load the SAE for layer 9 (0-based) of `load_demo_model()`'s Gemma 3 270M.

    JumpReLU, 4,096 features, about 40 active on a token. How it was trained, on what, and how good it is stands in
    its model card, `model_cards/gemma-3-270m-sae-l9.md`, and in the `metrics.json` beside its weights.
    `W_enc` and `W_dec` are stored in 16 bits and loaded as float32.
    """
    from sae_unlearn.sae import SparseAutoencoder

    with as_file(files(__package__) / DEMO_SAE_NAME) as folder:
        sae = SparseAutoencoder.from_pretrained(folder)
    sae.source["license"] = "gemma"  # as its NOTICE says; whatever is made of it names it
    return sae
