"""Sparse autoencoders: the equations, the published file formats, and the rows a guardrail needs."""

from .autoencoder import SparseAutoencoder
from .errors import SAEFormatError
from .readers import register_reader
from .slice import SAESlice


__all__ = ["SAEFormatError", "SAESlice", "SparseAutoencoder", "register_reader"]
