"""The package's version, read by `pyproject.toml` and recorded in every saved adapter."""

__version__ = "0.1.0"
