"""Attack: change the spelling of the words.

The features of a topic respond to the usual tokens of its words. Blanks between letters, misspellings and capitals give
other tokens, which a large model still understands.

Budget: black box, one greedy completion per fact, kind and share; no knowledge of the tokens or of the gate.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from torch import nn

from sae_unlearn.checks import check_choice, check_number
from sae_unlearn.evaluation.audit.attacks.base import AskFacts, AttackPoint, Measured, split_cue, with_cue
from sae_unlearn.evaluation.metrics.recall import Fact


Kind = Literal["spacing", "misspelling", "capitals"]

_WORD = re.compile(r"[^\W\d_]{4,}")  # shorter words carry little of a topic


def spelling_attack(
    model: nn.Module,
    facts: Sequence[Fact],
    ask: AskFacts[Measured],
    shares: Sequence[float] = (0.25, 0.5, 1.0),
    kinds: Sequence[Kind] = get_args(Kind),
    seed: int = 0,
) -> list[AttackPoint[Measured]]:
    """Ask each fact with a share of its words of four letters and more respelled.

    Controls: the same prompts on the base model, whose recall they lower too; and harmless facts respelled alike.

    Args:
        model (nn.Module): The model to ask.
        facts (sequence of Fact): The facts.
        ask (callable): Measure of the model on the respelled facts.
        shares (sequence of float, *optional*, defaults to (0.25, 0.5, 1.0)): Shares of the words, the strengths of the
            points. A larger share changes the words of a smaller one and more.
        kinds (sequence of str, *optional*, defaults to ("spacing", "misspelling", "capitals")): Variants of the points.
        seed (int, *optional*, defaults to 0): Seed of the drawn words and letters.

    Raises:
        UnlearnError: If a share is not in 0 to 1, or a kind is unknown.
    """
    return [
        AttackPoint(
            float(share),
            ask(model, [replace(f, prompt=respelt(f.prompt, share, kind, seed, i)) for i, f in enumerate(facts)]),
            kind,
        )
        for kind in kinds
        for share in shares
    ]


def respelt(prompt: str, share: float, kind: Kind, seed: int = 0, index: int = 0) -> str:
    """Return a prompt with its words respelled. Its cue ("Answer:") is not changed.

        spacing       m i s s p e l l     a blank between all letters
        misspelling   mispsell            two adjacent letters inside the word exchanged
        capitals      MISSPELL

    Args:
        prompt (str): The prompt.
        share (float): Share of the words, 0 to 1.
        kind (str): "spacing", "misspelling" or "capitals".
        seed (int, *optional*, defaults to 0): Seed of the draw.
        index (int, *optional*, defaults to 0): Number of the prompt, which distinguishes the prompts of one seed.

    Raises:
        UnlearnError: If `share` or `kind` is out of range.
    """
    check_number("share", share, 0, 1)
    check_choice("kind", kind, get_args(Kind))
    draw = random.Random(f"{seed} {index}")

    def change(match: re.Match[str]) -> str:
        word, chosen, place = match[0], draw.random() < share, draw.randrange(1, len(match[0]) - 2)
        if not chosen:
            return word
        if kind == "spacing":
            return " ".join(word)
        if kind == "capitals":
            return word.upper()
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]

    stem, cue = split_cue(prompt)
    return with_cue(_WORD.sub(change, stem), cue)
