"""SHA-256 of files and bytes, used to compare, seal and name files."""

import hashlib
from pathlib import Path


def sha256(content: bytes | Path) -> str:
    """Return the hexadecimal SHA-256 of bytes, or of the bytes of a file.

    Args:
        content (bytes or Path): The bytes, or the file. A file is read in parts, so its size does not matter.

    Raises:
        OSError: If the file cannot be read.
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
