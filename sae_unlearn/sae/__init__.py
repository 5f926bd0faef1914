"""Sparse autoencoders: the equations, the published file formats, and the rows a guardrail needs."""

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.autoencoder import SparseAutoencoder
from sae_unlearn.sae.formats import register_reader
from sae_unlearn.sae.slice import SAESlice


__all__ = ["SAEFormatError", "SAESlice", "SparseAutoencoder", "register_reader"]
