"""What of a public class can be given bad input, for the tables that must have a row for each."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any


def methods(name: str, kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """By name, the public methods of a class called `name` that are given something."""
    for method in vars(kind):
        call = getattr(kind, method)
        given = inspect.signature(call).parameters.keys() - {"self"} if inspect.isroutine(call) else ()
        if not method.startswith("_") and given:
            yield f"{name}.{method}", call
