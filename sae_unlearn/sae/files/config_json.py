"""Reading and checking of a small JSON configuration that may be malformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_unlearn.checks import check_bool, check_integer, check_number
from sae_unlearn.errors import SAEFormatError, UnlearnError
from sae_unlearn.files.untrusted import read_foreign_json


# Published configurations are below 10 kB.
MAX_BYTES = 1 << 20
LARGEST_INTEGER = 2**40  # JSON integers are unbounded


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        SAEFormatError: If it is larger than 1 MiB, not JSON, not an object, or has a key twice.
    """
    try:
        value = read_foreign_json(path, MAX_BYTES, str(path), constants=True)
    except UnlearnError as error:
        raise SAEFormatError(str(error)) from error
    if not isinstance(value, dict):
        raise SAEFormatError(f"{path} holds a {type(value).__name__}: expected a JSON object.")
    return value


def integer(raw: dict[str, Any], name: str, where: str) -> int:
    """Return the integer `raw[name]`. Raise SAEFormatError unless it is a whole number above 0."""
    value = raw.get(name)
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return check_integer(f"{where}: {name}", whole, 1, LARGEST_INTEGER, SAEFormatError)


def number(raw: dict[str, Any], name: str, where: str) -> float:
    """Return the number `raw[name]`. Raise SAEFormatError unless it is a finite number."""
    return check_number(f"{where}: {name}", raw.get(name), error=SAEFormatError)


def switch(raw: dict[str, Any], name: str, where: str) -> bool:
    """Return the bool `raw[name]`. Raise SAEFormatError unless it is one."""
    check_bool(f"{where}: {name}", raw.get(name), SAEFormatError)
    return bool(raw[name])
