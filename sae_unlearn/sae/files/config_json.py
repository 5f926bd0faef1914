"""Reading a small JSON configuration, and its values, that may be malformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_unlearn.errors import SAEFormatError, UnlearnError
from sae_unlearn.files.untrusted import read_foreign_json


# Published configurations are below 10 kB.
MAX_BYTES = 1 << 20
# JSON integers have no bound, and NaN and Infinity pass Python's parser; all of these fail a comparison with it.
LARGEST = 1e300
LARGEST_INTEGER = 2**40


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        SAEFormatError: larger than 1 MiB, not JSON, a key that is there twice, or not an object.
    """
    try:
        value = read_foreign_json(path, MAX_BYTES, str(path), constants=True)
    except UnlearnError as error:
        raise SAEFormatError(str(error)) from error
    if not isinstance(value, dict):
        raise SAEFormatError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def integer(raw: dict[str, Any], name: str, where: str) -> int:
    """The integer `raw[name]`; raises SAEFormatError where it is missing, or no whole number above 0."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= LARGEST_INTEGER or value % 1:
        raise SAEFormatError(f"{name} in {where} is {value!r:.80}; expected a whole number > 0")
    return int(value)


def number(raw: dict[str, Any], name: str, where: str) -> float:
    """The finite number `raw[name]`; raises SAEFormatError where it is missing or anything else."""
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST < value < LARGEST:
        raise SAEFormatError(f"{name} in {where} is {value!r:.80}; expected a finite number")
    return float(value)


def switch(raw: dict[str, Any], name: str, where: str) -> bool:
    """The truth value `raw[name]`; raises SAEFormatError where it is missing or anything else."""
    value = raw.get(name)
    if not isinstance(value, bool):
        raise SAEFormatError(f"{name} in {where} is {value!r:.80}; expected true or false")
    return value
