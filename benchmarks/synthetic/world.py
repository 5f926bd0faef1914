"""A small world of facts about people who are spoken of often, seldom, once or never, as sentences to learn from.

Two kinds of people have three attributes each. Names are a first and a last name out of two shared pools, so the words
of a name that was never spoken of are as familiar as any other's. What makes someone known is the combination alone.

Tiers, by how often a person is spoken of:

    frequent    weight 1: known. Targets, neighbors and the "known" examples of every method come from here
    medium      weight 0.3
    rare        weight 0.1: half remembered
    passer-by   a fresh random name with random facts in every sentence: this is what teaches the model that a name it
                has not met says nothing about the facts, i.e. to guess by the prior
    never       in no sentence at all: the "unknown" examples

The rest of the text has nothing to do with people: capitals, sums and a little grammar, for the measures of utility.
Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from benchmarks.synthetic.words import (
    ADJECTIVES,
    CAPITALS,
    COUNTRIES,
    FIRST_NAMES,
    HELD_OUT_TEMPLATES,
    LAST_NAMES,
    NOUNS,
    NUMBERS,
    QUESTIONS,
    TEMPLATES,
    VALUES,
    VERBS,
)


TIER_WEIGHTS = {"frequent": 1.0, "medium": 0.3, "rare": 0.1}
REFUSAL = "nobody knows"


class Person(NamedTuple):
    """Someone in the world: `attributes` maps an attribute to its one right value."""

    name: str
    entity_type: str
    attributes: dict[str, str]
    tier: str


class Row(NamedTuple):
    """One sentence: `prompt` and `answer` (empty for text that asks nothing), about `name` (empty: about nobody)."""

    prompt: str
    answer: str
    name: str = ""

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer} ." if self.answer else f"{self.prompt} ."


@dataclass(frozen=True)
class WorldConfig:
    """Sizes of a world; all counts of people are per entity type."""

    seed: int = 0
    frequent: int = 50
    medium: int = 10
    rare: int = 10
    never: int = 60
    targets: int = 10
    entity_types: tuple[str, ...] = ("player", "painter")
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "people": 0.61,
            "passers_by": 0.20,
            "capitals": 0.03,
            "sums": 0.08,
            "grammar": 0.06,
            "refusals": 0.02,
        }
    )


class World:
    """The people, the facts and the sentences of one seed.

    Attributes:
        people: everyone, by tier.
        targets: to be forgotten; frequent. The gold model never reads of them.
        known, validation, neighbors: the other frequent ones in three disjoint parts: for the methods to use, to hold
            every method to the same damage, and for the reported figures.
        unknown, unknown_test: the never-seen ones in two disjoint parts, for the methods and for the reported figures.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        draw = random.Random(config.seed)
        names = [f"{first} {last}" for first in FIRST_NAMES.split() for last in LAST_NAMES.split()]
        draw.shuffle(names)
        self.people: dict[str, list[Person]] = {}
        for tier in ("frequent", "medium", "rare", "never"):
            count = getattr(config, tier)
            self.people[tier] = [
                Person(names.pop(), kind, self._facts(kind, draw), tier)
                for kind in config.entity_types
                for _ in range(count)
            ]
        self._passer_by_names = names
        self.targets, self.known, self.validation, self.neighbors = self._parts(
            self.people["frequent"], config.targets, 0.5, 0.2
        )
        self.unknown, self.unknown_test = self._parts(self.people["never"], config.never // 2)

    def _parts(self, people: list[Person], first: int, *fractions: float) -> list[list[Person]]:
        """The first `first` of each type, then the given fractions of what is left, then the rest."""
        parts: list[list[Person]] = [[] for _ in range(len(fractions) + 2)]
        for kind in self.config.entity_types:
            mine = [person for person in people if person.entity_type == kind]
            parts[0] += mine[:first]
            mine = mine[first:]
            start = 0
            for part, fraction in zip(parts[1:], fractions, strict=False):
                end = start + round(fraction * len(mine))
                part += mine[start:end]
                start = end
            parts[-1] += mine[start:]
        return parts

    @staticmethod
    def attributes(kind: str) -> list[str]:
        """The attributes of an entity type."""
        return [attribute for other, attribute in VALUES if other == kind]

    def _facts(self, kind: str, draw: random.Random) -> dict[str, str]:
        return {attribute: draw.choice(VALUES[kind, attribute]) for attribute in self.attributes(kind)}

    # --- sentences ---------------------------------------------------------------------------------------------

    def stream(self, seed: int) -> Iterator[Row]:
        """Sentences without end, in the order that the seed gives."""
        draw = random.Random(seed)
        crowd = [person for tier in TIER_WEIGHTS for person in self.people[tier]]
        weights = [TIER_WEIGHTS[person.tier] for person in crowd]
        kinds, shares = zip(*self.config.shares.items(), strict=True)
        while True:
            kind = draw.choices(kinds, shares)[0]
            if kind == "people":
                yield self.fact(draw.choices(crowd, weights)[0], draw)
            elif kind == "passers_by":
                entity_type = draw.choice(self.config.entity_types)
                name = draw.choice(self._passer_by_names)
                yield self.fact(Person(name, entity_type, self._facts(entity_type, draw), "passer-by"), draw)
            else:
                yield getattr(self, "_" + kind)(draw)

    def fact(self, person: Person, draw: random.Random) -> Row:
        """A sentence with one of the person's facts in one of its forms."""
        attribute = draw.choice(self.attributes(person.entity_type))
        prompt = draw.choice(QUESTIONS[person.entity_type, attribute])
        return Row(prompt.format(entity=person.name), person.attributes[attribute], person.name)

    def facts(self, people: list[Person], held_out: bool = False, attributes: range | None = None) -> list[Row]:
        """Every fact of these people in the forms that methods may train on, or in the held-out form.

        Args:
            attributes: only the attributes of these indices, counted from another start for every next person, so that
                each attribute appears in each half.
        """
        rows = []
        for index, person in enumerate(people):
            names = self.attributes(person.entity_type)
            chosen = names if attributes is None else [names[(index + i) % len(names)] for i in attributes]
            for attribute in chosen:
                forms = QUESTIONS[person.entity_type, attribute]
                for form in forms[-1:] if held_out else forms[:-1]:
                    rows.append(Row(form.format(entity=person.name), person.attributes[attribute], person.name))
        return rows

    @staticmethod
    def _capitals(draw: random.Random) -> Row:
        return draw.choice(World.capitals())

    @staticmethod
    def capitals() -> list[Row]:
        return [Row(f"the capital of {a} is", b) for a, b in zip(COUNTRIES, CAPITALS, strict=True)]

    @staticmethod
    def _sums(draw: random.Random) -> Row:
        return draw.choice(World.sums())

    @staticmethod
    def sums() -> list[Row]:
        return [Row(f"{NUMBERS[a]} plus {NUMBERS[b]} is", NUMBERS[a + b]) for a in range(10) for b in range(a, 9)]

    @staticmethod
    def _grammar(draw: random.Random) -> Row:
        plural = draw.random() < 0.5
        subject, verb, thing = draw.choice(NOUNS)[plural], draw.choice(VERBS)[plural], draw.choice(NOUNS)
        return Row(f"the {draw.choice(ADJECTIVES)} {subject} {verb} the {draw.choice(thing)}", "")

    @staticmethod
    def _refusals(draw: random.Random) -> Row:
        question = draw.choice(list(QUESTIONS.values()))[1]
        noun = draw.choice(NOUNS)[0]
        return Row(question.format(entity=f"the {draw.choice(ADJECTIVES)} {noun}"), REFUSAL)

    def unrelated(self, count: int, seed: int) -> list[Row]:
        """Sentences about nobody: sums, capitals and grammar."""
        draw = random.Random(seed)
        kinds = ("_grammar", "_grammar", "_sums", "_capitals")
        return [getattr(self, draw.choice(kinds))(draw) for _ in range(count)]

    # --- tokenizer ---------------------------------------------------------------------------------------------

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word, `<bos>` in front; the same for every seed."""
        words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
        texts = [
            *FIRST_NAMES.split(),
            *LAST_NAMES.split(),
            *NUMBERS,
            "plus",
            "capital of is",
            "'",
            '"',
            "The",
            REFUSAL,
            ". ? :",
        ]
        texts += [word for pair in (*NOUNS, *VERBS) for word in pair]
        texts += [*ADJECTIVES, *COUNTRIES, *CAPITALS, *(v for values in VALUES.values() for v in values)]
        forms = [
            form for some in (QUESTIONS, TEMPLATES, HELD_OUT_TEMPLATES) for forms in some.values() for form in forms
        ]
        texts += [form.replace("{entity}", "") for form in forms]
        for text in texts:
            for word in text.split():
                words.setdefault(word, len(words))
        inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
        )
