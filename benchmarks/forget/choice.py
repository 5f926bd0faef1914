"""At matched utility: of a method's strengths, the one that forgets most and damages other text within one budget."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


BUDGET = 0.1
"""Nats per token that other text may lose, mean over validation texts."""


class Candidate(NamedTuple):
    """One strength of a method, measured on validation texts.

    Attributes:
        strength: the dose, the number of a prompt, or the step.
        forgotten: mean change of loss on the topic's validation texts.
        damage: mean change of loss on the other ones.
    """

    strength: float
    forgotten: float
    damage: float

    @classmethod
    def of(cls, strength: float, forgotten: Tensor, damage: Tensor) -> "Candidate":
        """From the changes of single texts."""
        return cls(strength, float(forgotten.mean()), float(damage.mean()))

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return self._asdict()


def choose(candidates: Sequence[Candidate], budget: float = BUDGET) -> Candidate | None:
    """The candidate within the budget that forgets most, the weaker of two that forget alike; None if none is within.

    A damage that is not finite is none that is within.
    """
    within = [c for c in candidates if c.damage <= budget]
    return max(within, key=lambda c: (c.forgotten, -c.strength)) if within else None


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one beats at both, by rising damage: each forgets more than all that damage less."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.damage, -c.forgotten)):
        if not front or candidate.forgotten > front[-1].forgotten:
            front.append(candidate)
    return front
