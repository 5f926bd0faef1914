"""What an attack measures at one strength of it.

The two parts of a prompt: what is asked, and the cue behind it that calls for the answer.
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


_CUE = re.compile(r"\n[^\n:]{1,40}:\s*$")

END_OF_SENTENCE = "The unfinished sentence above ends with:"
"""The cue that stands behind a sentence's beginning once something else has come between."""


def split_cue(prompt: str) -> tuple[str, str]:
    """ "Question: ...\\nAnswer:" gives what is before the last line, and "Answer:"; a sentence's beginning has no cue,
    and the second part is empty."""
    found = _CUE.search(prompt)
    if found is None or not prompt[: found.start()].strip():
        return prompt, ""
    return prompt[: found.start()], prompt[found.start() :].strip()


def with_cue(stem: str, cue: str) -> str:
    """The prompt that `split_cue` divided."""
    return f"{stem}\n{cue}" if cue else stem


def unfinished(stem: str, cue: str) -> str:
    """The stem as a text that something else may follow: a sentence's beginning is left with three dots."""
    return stem if cue else f"{stem} ..."
