"""Reading and checking of a small JSON configuration that may be malformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_unlearn.errors import SAEFormatError, UnlearnError
from sae_unlearn.files.untrusted import read_foreign_json


# Published configurations are below 10 kB.
MAX_BYTES = 1 << 20
# JSON integers are unbounded, and NaN and Infinity pass Python's parser. A comparison with this bound refuses them.
LARGEST = 1e300
LARGEST_INTEGER = 2**40


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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= LARGEST_INTEGER or value % 1:
        raise SAEFormatError(f"{name} in {where} is {value!r:.80}: expected a whole number > 0.")
    return int(value)


def number(raw: dict[str, Any], name: str, where: str) -> float:
    """Return the number `raw[name]`. Raise SAEFormatError unless it is a finite number."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST < value < LARGEST:
        raise SAEFormatError(f"{name} in {where} is {value!r:.80}: expected a finite number.")
    return float(value)


def switch(raw: dict[str, Any], name: str, where: str) -> bool:
    """Return the bool `raw[name]`. Raise SAEFormatError unless it is one."""
    value = raw.get(name)
    if not isinstance(value, bool):
        raise SAEFormatError(f"{name} in {where} is {value!r:.80}: expected true or false.")
    return value
