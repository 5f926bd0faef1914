"""The error that a malformed or unsupported SAE file raises."""

from sae_unlearn.errors import UnlearnError


class SAEFormatError(UnlearnError):
    """A file or folder does not hold a sparse autoencoder that this library can read exactly.

    The message names the file, the value found, what was expected and the mend.
    """
