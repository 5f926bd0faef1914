"""What a guarded engine says when a part is taken away, gathered for the docs if a file is named.

SAE_UNLEARN_FAILS_CLOSED=FILE pytest tests/engines/vllm -k "fails_closed or limits or compiled"
SAE_UNLEARN_FAILS_CLOSED=FILE pytest tests/cli/test_serve_command.py tests/engines/test_service_check.py
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
    note(part, str(raised.value), when)


def note(part, said, when):
    """Note what is said if `part` is missing; of several lines, the first with a problem."""
    file = os.environ.get(VARIABLE)
    if file:
        problems = [line for line in said.splitlines() if line.startswith(("PROBLEM", "sae-unlearn"))]
        said = (problems or said.splitlines())[0].removeprefix("PROBLEM").removeprefix("sae-unlearn: ").strip()
        with open(file, "a") as lines:
            lines.write(json.dumps({"part": part, "when": when, "said": said}) + "\n")
