"""What the hooks of a running call tell each other, each thread by itself.

Thread-local and not a context variable: `torch.compile` can trace it, and where a graph breaks between two hooks, code
that was compiled finds the notes of its own thread's call again. A forward pass runs in one thread from its beginning
to its end, and nothing else runs in it meanwhile.
"""

import threading
from typing import Any


INPUTS, CALL, NEXT = "inputs of the backbone", "call of the model", "tokens that have to come next"

_NOTES = threading.local()


def note(name: str, value: Any) -> None:
    """Leave the note `name`, one of those above; None takes it away."""
    setattr(_NOTES, name, value)


def noted(name: str) -> Any:
    """The note of that name; None if there is none."""
    return getattr(_NOTES, name, None)
