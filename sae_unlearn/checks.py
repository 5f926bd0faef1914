"""Argument checks that several modules share, and numbers of a config made fit to show."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sized
from typing import Any

from sae_unlearn.errors import UnlearnError


LARGEST_FLOAT = 3.4028235677973366e38  # from here on float32 is infinite


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


def check_list(name: str, value: Any, error: type[UnlearnError] = UnlearnError) -> None:
    """Raise unless `value` is a collection, and neither a text nor a mapping.

    Raises:
        UnlearnError: If it is not.
    """
    items = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
    if not items or getattr(value, "ndim", 1) == 0:  # an array of no dimension is a single number
        raise error(f"{name}={quoted(value)}: expected a list.")


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


def check_same_number(**given: Sized) -> None:
    """Raise unless all sequences have the same number of items.

    Raises:
        UnlearnError: If one has another number.
    """
    numbers = {name: len(items) for name, items in given.items()}
    if len(set(numbers.values())) > 1:
        raise UnlearnError(f"{', '.join(numbers)}: expected the same number of each, got {list(numbers.values())}.")


def check_is(value: Any, kind: type, what: str) -> None:
    """Raise unless `value` has a type.

    Raises:
        UnlearnError: If it has another type.
    """
    if not isinstance(value, kind):
        raise UnlearnError(f"{what}: expected {kind.__name__}, got {type(value).__name__}.")


def check_integer(
    name: str,
    value: Any,
    low: int | None = None,
    high: int | None = None,
    error: type[UnlearnError] = UnlearnError,
    fix: str = "",
) -> int:
    """Return `value` if it is an int in a range.

    Args:
        name (str): The name of the argument, for the error.
        value (Any): The value to check. A bool is not an int here.
        low, high (int, *optional*): Bounds, both included.
        error (type[UnlearnError], *optional*, defaults to UnlearnError): Class of the error.
        fix (str, *optional*): A sentence after the message, which says what to do.

    Raises:
        UnlearnError: If it is not an int, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not _inside(value, low, high, None, None):
        raise error(f"{name}={quoted(value)}: expected an integer{_range(low, high, None, None)}.{_after(fix)}")
    return value


def check_number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    error: type[UnlearnError] = UnlearnError,
    fix: str = "",
) -> float:
    """Return `value` as a float if it is an int or float in a range that is finite in float32.

    Args:
        name (str): The name of the argument, for the error.
        value (Any): The value to check. A bool is not a number here.
        low, high (float, *optional*): Bounds, both included.
        above, below (float, *optional*): Bounds, both excluded.
        error (type[UnlearnError], *optional*, defaults to UnlearnError): Class of the error.
        fix (str, *optional*): A sentence after the message, which says what to do.

    Raises:
        UnlearnError: If it is not a number, or out of range.
    """
    number = not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < LARGEST_FLOAT
    if not number or not _inside(value, low, high, above, below):
        raise error(f"{name}={quoted(value)}: expected a finite number{_range(low, high, above, below)}.{_after(fix)}")
    return float(value)


def _inside(value: float, low: float | None, high: float | None, above: float | None, below: float | None) -> bool:
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    """Return a range in words that follow "a number"."""
    if low is not None and high is not None:
        return f" from {_bound(low)} to {_bound(high)}"
    ends = [("of at least", low), ("above", above), ("of at most", high), ("below", below)]
    found = [f"{words} {_bound(end)}" for words, end in ends if end is not None]
    return "".join([" ", " and ".join(found)]) if found else ""


def _bound(end: float) -> str:
    return str(end) if isinstance(end, int) else f"{end:.4g}"


def _after(fix: str) -> str:
    return f" {fix}" if fix else ""


def check_choice(name: str, value: Any, allowed: Collection[Any], error: type[UnlearnError] = UnlearnError) -> None:
    """Raise unless `value` is among the allowed ones.

    Raises:
        UnlearnError: If it is not.
    """
    if not isinstance(value, Hashable) or value not in list(allowed):  # an array equals nothing as a whole
        raise error(f"{name}={quoted(value)}: expected one of {', '.join(map(repr, allowed))}.")


def check_bool(name: str, value: Any, error: type[UnlearnError] = UnlearnError) -> None:
    """Raise unless `value` is True or False.

    Raises:
        UnlearnError: If it is not.
    """
    if not isinstance(value, bool):
        raise error(f"{name}={quoted(value)}: expected True or False.")


def quoted(value: Any) -> str:
    """Return a value as Python writes it, cut at 80 characters."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python shows no integer of thousands of digits
        return "a number too long to show"


def check_counts(**numbers: Any) -> None:
    """Raise unless each value is an int of at least 1.

    Raises:
        UnlearnError: If one is not.
    """
    for name, number in numbers.items():
        check_integer(name, number, 1)
