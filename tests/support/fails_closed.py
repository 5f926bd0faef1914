"""What a guarded engine says when a part is taken away, gathered for the docs if a file is named.

SAE_UNLEARN_FAILS_CLOSED=FILE pytest tests/engines/vllm/test_fails_closed.py
python -m benchmarks.serving.fails_closed FILE
"""

import json
import os
from contextlib import contextmanager

import pytest


VARIABLE = "SAE_UNLEARN_FAILS_CLOSED"


@contextmanager
def stopped(part, error=Exception, match=None, when="start"):
    """Require an error, as `pytest.raises`, and note what it says.

    Args:
        part: What was taken away or asked for.
        error: Class of the error.
        match: Pattern of its text.
        when: "start", "pass" or "request".
    """
    with pytest.raises(error, match=match) as raised:
        yield raised
    file = os.environ.get(VARIABLE)
    if file:
        line = {"part": part, "when": when, "error": type(raised.value).__name__, "said": str(raised.value)}
        with open(file, "a") as lines:
            lines.write(json.dumps(line) + "\n")
