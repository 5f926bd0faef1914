"""Checks of single values in a guardrail's config. Errors name field, value and expectation."""

import math
import struct
from collections.abc import Mapping
from typing import Any

import torch

from sae_unlearn import checks
from sae_unlearn.errors import GuardrailError


LARGEST_COUNT = 2**24  # counts are float32, which is exact up to here
LARGEST_ID = 2**31 - 1


def check_integer(name: str, value: Any, low: int, high: int = LARGEST_COUNT) -> int:
    """Return `value`, or raise GuardrailError unless it is an integer from `low` to `high`."""
    return checks.check_integer(name, value, low, high, GuardrailError)


def check_real(name: str, value: Any, low: float | None = None, high: float | None = None, **more: Any) -> None:
    """Raise GuardrailError unless `value` is a number in a range, as for `checks.check_number`."""
    checks.check_number(name, value, low, high, **more, error=GuardrailError)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise GuardrailError unless `value` is one of `allowed`."""
    checks.check_choice(name, value, allowed, GuardrailError)


def check_mapping(name: str, value: Any) -> None:
    """Raise GuardrailError unless `value` is a dict or None."""
    if value is not None and not isinstance(value, dict):
        raise GuardrailError(f"{name}={value!r:.80}: expected a mapping, got {type(value).__name__}.")


def as_token_ids(name: str, ids: Any) -> tuple[int, ...] | None:
    """Return token ids sorted and without repetitions, or None for None."""
    if ids is None:
        return None
    if not isinstance(ids, (list, tuple, set)):
        raise GuardrailError(f"{name}={ids!r:.80}: expected a list of token ids, got {type(ids).__name__}.")
    return tuple(sorted({check_integer(name, i, 0, LARGEST_ID) for i in ids}))


def check_keys(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise GuardrailError unless `value` is a mapping whose keys are among `known`."""
    if not isinstance(value, Mapping):
        raise GuardrailError(f"{name}={value!r:.80}: expected a mapping with keys of {', '.join(known)}.")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise GuardrailError(f"{name}={unknown[:5]!r:.80}: expected keys of {', '.join(known)}.")


def as_float32(value: float) -> float:
    """Return `value` as the gate holds it, infinite if float32 cannot.

    Code that is being compiled cannot round: there it is `value` itself.
    """
    if torch.compiler.is_compiling():
        return value
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except (OverflowError, struct.error):  # the latter for integers beyond the range of floats
        return math.inf
