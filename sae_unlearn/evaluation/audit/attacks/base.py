"""What an attack measures at one strength of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.recall import Fact


Measured = TypeVar("Measured")

AskFacts = Callable[[nn.Module, Sequence[Fact]], Measured]
"""What an attack on prompts does with the model and the rewritten facts, which are in the order of the given ones."""


class NotPossible(UnlearnError):
    """There is nothing on this model that the attack could work on; an audit notes it and goes on."""


@dataclass(frozen=True)
class AttackPoint(Generic[Measured]):
    """One point of an attack's curve.

    Attributes:
        strength: steps trained, bits kept, words added, multiples of a direction: what the attack's own text says.
        found: what the caller's measure gave there.
        variant: which way of the attack, where there are several.
    """

    strength: float
    found: Measured
    variant: str = ""
