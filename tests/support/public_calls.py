"""What of a public class can be given bad input, for the tables that must have a row for each."""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


def methods(name: str, kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """By name, the public methods that are given something, of a class and its bases in this package."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("sae_unlearn")]
    for method in dict.fromkeys(method for base in own for method in vars(base)):
        call = getattr(kind, method)
        given = inspect.signature(call).parameters.keys() - {"self"} if inspect.isroutine(call) else ()
        if not method.startswith("_") and given:
            yield f"{name}.{method}", call


def public_calls(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """By name, every public function and class of a module but its errors, and the methods of the classes."""
    for name in module.__all__:
        found = getattr(module, name)
        if not callable(found) or (inspect.isclass(found) and issubclass(found, Exception)):
            continue
        yield name, found
        if inspect.isclass(found):
            yield from methods(name, found)
