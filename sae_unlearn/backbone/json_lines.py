"""Files of one JSON value a line."""

import json
from typing import Any


def json_lines(text: str) -> list[Any]:
    """The values; blank lines are left out. `splitlines` would divide a text at U+2028 and others, which JSON leaves as
    they are.

    Raises:
        json.JSONDecodeError: a line is not JSON.
    """
    return [json.loads(line) for line in text.split("\n") if line.strip()]
