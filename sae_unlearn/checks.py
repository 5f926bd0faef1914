"""Argument checks that several modules share, and numbers of a config made fit to show."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from sae_unlearn.errors import UnlearnError


def shown(value: Any, form: str) -> str:
    """Return a number formatted by `form`, or "-" for anything else."""
    number = real(value)
    return "-" if number is None else f"{number:{form}}"


def real(value: Any) -> float | None:
    """Return a value of a config as a float, or None if it is not a number up to 1e100."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e100:  # not NaN either
        return None
    return float(value)


def reals(values: Any) -> list[float]:
    """Return the numbers of a list as floats, without its other items."""
    found = [real(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]


def check_all(items: Any, kind: type, what: str, least: int = 0) -> None:
    """Raise unless `items` are of one type, and at least a number of them.

    Args:
        items (Any): The value to check.
        kind (type): The type that every item must have.
        what (str): The name of the argument, for the error.
        least (int, *optional*, defaults to 0): The smallest number of items.

    Raises:
        UnlearnError: If it is not a list, an item has another type, or there are fewer items.
    """
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise UnlearnError(f"{what}: expected a list of {kind.__name__}, got {type(items).__name__}.")
    held = list(items)
    wrong = next((item for item in held if not isinstance(item, kind)), None)
    if wrong is not None:
        raise UnlearnError(f"{what}: expected only {kind.__name__}, got also {type(wrong).__name__}.")
    if len(held) < least:
        raise UnlearnError(f"{what}: expected at least {least}, got {len(held)}.")


def check_is(value: Any, kind: type, what: str) -> None:
    """Raise unless `value` has a type.

    Raises:
        UnlearnError: If it has another type.
    """
    if not isinstance(value, kind):
        raise UnlearnError(f"{what}: expected {kind.__name__}, got {type(value).__name__}.")


def check_counts(**numbers: Any) -> None:
    """Raise unless each value is an int of at least 1.

    Raises:
        UnlearnError: If one is not.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UnlearnError(f"{name}={number!r}: expected an integer of at least 1.")


def check_tensors(dimensions: int, **tensors: Any) -> None:
    """Raise unless all are tensors of `dimensions` axes whose sizes agree beyond the first axis.

    Raises:
        UnlearnError: If one is not a tensor, has other dimensions, or the sizes differ.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
            what = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UnlearnError(f"{name}: expected a tensor of {dimensions} dimensions, got {what}.")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({tuple(shape[1:]) for shape in shapes.values()}) > 1:
        raise UnlearnError(f"The shapes {shapes} differ: expected equal sizes beyond the first dimension.")
