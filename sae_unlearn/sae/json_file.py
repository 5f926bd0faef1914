"""Reading a small JSON configuration that may be malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import SAEFormatError


# Published configurations are below 10 kB.
MAX_BYTES = 1 << 20


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        SAEFormatError: larger than 1 MiB, not JSON, or not an object.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SAEFormatError(f"{path} is {size} bytes; expected a configuration of at most {MAX_BYTES} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SAEFormatError(f"{path} is not valid JSON ({error}); download or save it again") from error
    if not isinstance(value, dict):
        raise SAEFormatError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value
