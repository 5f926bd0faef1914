"""The error that a malformed or unsupported SAE file raises."""


class SAEFormatError(ValueError):
    """A file or folder does not hold a sparse autoencoder that this library can read exactly.

    The message names the file, the value found, what was expected and the mend.
    """
