"""What a baseline is, and which there are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.baselines.rows import Batch, TextRow
from sae_unlearn.errors import UnlearnError


Reference = Callable[[], AbstractContextManager[Any]]
"""Inside `with reference():` the model is the base model, its adapter disabled."""

Loss = Callable[[nn.Module, Batch, Batch, Reference], Tensor]
"""`loss(model, forget_batch, retain_batch, reference)`: a scalar to be minimised."""


@dataclass(frozen=True)
class Method:
    """An unlearning method.

    Attributes:
        name: as in tables.
        loss: what is minimised.
        rewrite: turns the forget rows into what the method trains on instead, such as refusals; None leaves them.
    """

    name: str
    loss: Loss
    rewrite: Callable[[Sequence[TextRow]], list[TextRow]] | None = None


_REGISTRY: dict[str, Callable[..., Method]] = {}


def register(name: str) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Makes `get_method(name, **options)` call the decorated function.

    Raises:
        UnlearnError: the name is taken.
    """

    def add(make: Callable[..., Method]) -> Callable[..., Method]:
        if name in _REGISTRY:
            raise UnlearnError(f"name={name!r}: expected a name of no other baseline.")
        _REGISTRY[name] = make
        return make

    return add


def method_names() -> list[str]:
    """All baselines, in the order of their registration."""
    return list(_REGISTRY)


def get_method(name: str, **options: Any) -> Method:
    """The baseline of this name with its options, which are those of the function that makes it.

    Raises:
        UnlearnError: no such baseline.
    """
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnlearnError(f"name={name!r}: expected one of {', '.join(_REGISTRY)}.{hint}")
    return _REGISTRY[name](**options)
