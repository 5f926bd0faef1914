"""The package's version, read by `setup.py` and recorded in every artefact."""

__version__ = "0.1.0"
