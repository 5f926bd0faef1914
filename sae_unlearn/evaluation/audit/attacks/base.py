"""Shared parts of the attacks: the point of a curve, and a prompt as its stem and its cue.

The stem is the question. The cue is a last line that calls for the answer, such as "Answer:".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.recall import Fact


Measured = TypeVar("Measured")

AskFacts = Callable[[nn.Module, Sequence[Fact]], Measured]
"""Measure of the model on the rewritten facts, which are in the order of the given facts."""


class NotPossible(UnlearnError):
    """The attack cannot be run on this model. An audit notes it and continues."""


@dataclass(frozen=True)
class AttackPoint(Generic[Measured]):
    """One point of an attack's curve.

    Attributes:
        strength (float): In the unit of the attack: steps trained, bits kept, words added, multiples of a direction.
        found: Return value of the caller's measure.
        variant (str, *optional*, defaults to ""): Variant of the attack, if it has several.
    """

    strength: float
    found: Measured
    variant: str = ""


_CUE = re.compile(r"\n[^\n:]{1,40}:\s*$")

_REPEATED = 4  # words: after the whole stem a base model copies the text that followed it the first time


def split_cue(prompt: str) -> tuple[str, str]:
    """Return stem and cue of a prompt.

    "Question: ...\\nAnswer:"  ->  "Question: ...", "Answer:"
    "Water boils at"           ->  "Water boils at", ""
    """
    found = _CUE.search(prompt)
    if found is None or not prompt[: found.start()].strip():
        return prompt, ""
    return prompt[: found.start()], prompt[found.start() :].strip()


def with_cue(stem: str, cue: str) -> str:
    """Return the prompt of a stem and a cue: the inverse of `split_cue`."""
    return f"{stem}\n{cue}" if cue else stem


def unfinished(stem: str, cue: str) -> str:
    """Return the stem as a text that another text can follow: three dots end an unfinished sentence."""
    return stem if cue else f"{stem} ..."


def closing(stem: str, cue: str) -> str:
    """Return the text that asks for the answer after another text.

    It is the cue, or the last words of an unfinished sentence once more.
    """
    return cue or f"... {' '.join(stem.split()[-_REPEATED:])}"
