"""Sparse autoencoders: equations, published file formats, and slices for a guardrail."""

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.autoencoder import SparseAutoencoder
from sae_unlearn.sae.directory.entry import PublishedSAE
from sae_unlearn.sae.directory.lookup import published_saes
from sae_unlearn.sae.formats import Reader, needs, one_of, register_reader
from sae_unlearn.sae.formats.base import SAEFolder, SAEWeights
from sae_unlearn.sae.slice import SAESlice
from sae_unlearn.sae.training.train import train_sae


__all__ = [
    "PublishedSAE",
    "Reader",
    "SAEFolder",
    "SAEFormatError",
    "SAESlice",
    "SAEWeights",
    "SparseAutoencoder",
    "needs",
    "one_of",
    "published_saes",
    "register_reader",
    "train_sae",
]
