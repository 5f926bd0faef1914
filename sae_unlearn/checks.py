"""What a measure is given, looked at before anything long is begun."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from sae_unlearn.errors import UnlearnError


def shown(value: Any, form: str) -> str:
    """A number as `form` writes it, "-" for anything else."""
    number = real(value)
    return "-" if number is None else f"{number:{form}}"


def real(value: Any) -> float | None:
    """A number that can be shown; None for anything else that stands in a config."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e100:  # not NaN either
        return None
    return float(value)


def reals(values: Any) -> list[float]:
    """The numbers of a list."""
    found = [real(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]


def check_all(items: Any, kind: type, what: str, least: int = 0) -> None:
    """Raise unless `items` are things of one kind, at least so many.

    Raises:
        UnlearnError: naming what is among them.
    """
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise UnlearnError(f"{what} is a {type(items).__name__}; pass a list of {kind.__name__}.")
    held = list(items)
    wrong = next((item for item in held if not isinstance(item, kind)), None)
    if wrong is not None:
        raise UnlearnError(f"{what} holds a {type(wrong).__name__}; expected {kind.__name__} alone.")
    if len(held) < least:
        raise UnlearnError(f"{what} holds {len(held)}; pass at least {least}.")


def check_is(value: Any, kind: type, what: str) -> None:
    """Raise unless `value` is of a kind.

    Raises:
        UnlearnError: naming what it is.
    """
    if not isinstance(value, kind):
        raise UnlearnError(f"{what} is a {type(value).__name__}; pass a {kind.__name__}.")


def check_counts(**numbers: Any) -> None:
    """Raise unless each is a whole number from 1 on.

    Raises:
        UnlearnError: naming it.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UnlearnError(f"{name}={number!r}; expected at least 1.")


def check_tensors(dimensions: int, **tensors: Any) -> None:
    """Raise unless each is a tensor of so many dimensions, and all agree in every one but the first.

    Raises:
        UnlearnError: naming it.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
            what = f"of shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UnlearnError(f"{name} is {what}; expected a tensor of {dimensions} dimensions.")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({tuple(shape[1:]) for shape in shapes.values()}) > 1:
        raise UnlearnError(f"The shapes {shapes} differ beyond their first dimension.")
