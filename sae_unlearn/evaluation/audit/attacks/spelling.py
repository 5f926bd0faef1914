"""Attack: spell the words of the question otherwise.

The features of a topic are features of its words' usual tokens. Blanks between letters, misspellings and capitals make
other tokens of them, which a large model reads as well.

Budget: black box, one greedy completion per fact, kind and share; no knowledge of the tokens or of the gate.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from torch import nn

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
    """Ask each fact with a share of its words of four letters and more spelt otherwise.

    Control: the same prompts on the base model, which loses recall by them too; and harmless facts spelt likewise.

    Args:
        ask: what to do with the model and the respelt facts.
        shares: of the words; the strengths of the points. What a small share changes, a larger one changes too.
        kinds: the variants of the points; see `respelt`.
        seed: of the words and letters drawn.

    Raises:
        ValueError: a share outside 0 to 1, or an unknown kind.
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
    """A prompt with its words changed; its cue ("Answer:") stays.

        spacing       m i s s p e l t     a blank between all letters
        misspelling   mispselt            two neighbouring letters inside the word exchanged
        capitals      MISSPELT

    Args:
        index: tells the prompts of one seed apart.
    """
    if not 0 <= share <= 1 or kind not in get_args(Kind):
        raise ValueError(f"share={share} of words by {kind!r}; expected 0 to 1, and {', '.join(get_args(Kind))}.")
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
