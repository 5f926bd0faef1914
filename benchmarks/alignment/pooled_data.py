"""Disjoint sets of ten cities, with the same other cities, texts and facts for all of them.

The cities are those of `label_by_probability`. One shuffle decides everything: 200 known cities and 60 % of the
unknown ones to train with, 40 known neighbors and the other unknown ones to measure on, three sets to choose settings
on, and from the rest as many sets to report on as there are. No set has more than two cities of a country, and no city
is in two parts.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.alignment.data import QUESTIONS, _relation, _samples, _texts, country_of
from sae_unlearn.alignment import Entity, EntitySet
from sae_unlearn.alignment.short_prompts import SHORT_PROMPTS
from sae_unlearn.evaluation import Fact
from sae_unlearn.evaluation.audit.attacks.unnamed import naming_prompts


SIZE, PER_COUNTRY = 10, 2
KNOWN_TRAIN, NEIGHBORS, UNKNOWN_TRAIN = 200, 40, 0.6
CHOICE_SETS = 3
FACTS_OF_A_RELATION = 150
ALIGNED_QUESTIONS = (QUESTIONS[0], "{entity} is a city in the country of")
"""Forms whose beginnings are among the prompts of the alignment; `QUESTIONS[1]` is in no training."""

FACTS = {
    "near": (
        "factual/country_language",
        "factual/country_currency",
        "factual/landmark_in_country",
        "factual/landmark_on_continent",
        "factual/country_capital_city",
    ),
    "unrelated, relation held": (
        "factual/product_by_company",
        "commonsense/object_superclass",
        "commonsense/substance_phase",
        "linguistic/adj_antonym",
    ),
    "unrelated, relation not held": (
        "linguistic/adj_comparative",
        "linguistic/verb_past_tense",
        "factual/food_from_country",
        "factual/person_occupation",
        "commonsense/work_location",
        "commonsense/task_done_by_tool",
        "commonsense/fruit_inside_color",
    ),
}
"""Relations on which no harm is wanted. Short prompts of those that are "held" are among the retain rows, about other
subjects."""


@dataclass(frozen=True)
class PooledData:
    """What every set is trained and measured with.

    Attributes:
        choice: sets to choose settings on.
        sets: sets to report on.
        known_train, unknown_train: other cities for the training.
        known_test, unknown_test: neighbors and reference, which no training sees.
        countries: the closed set of answers.
        facts: facts by group.
        retain: texts to train with. None names a city of any set.
        wiki: texts from other articles to measure on.
    """

    choice: list[EntitySet]
    sets: list[EntitySet]
    known_train: EntitySet
    known_test: EntitySet
    unknown_train: EntitySet
    unknown_test: EntitySet
    countries: list[str]
    facts: dict[str, list[Fact]]
    retain: list[str]
    wiki: list[str]

    @cached_property
    def all_targets(self) -> EntitySet:
        """The cities of every set."""
        return EntitySet([city for part in (*self.choice, *self.sets) for city in part])

    def right(self, cities: EntitySet) -> list[int]:
        """The index of each city's country among `countries`."""
        return [self.countries.index(country_of(city)) for city in cities]


def load_pooled_data(folder: Path, cities: Path) -> PooledData:
    """Build the sets."""
    known, unknown = EntitySet.from_file(cities / "known.json"), EntitySet.from_file(cities / "unknown.json")
    order = sorted(known, key=lambda city: city.entity)
    random.Random(0).shuffle(order)
    train, test, rest = (
        order[:KNOWN_TRAIN],
        order[KNOWN_TRAIN : KNOWN_TRAIN + NEIGHBORS],
        order[KNOWN_TRAIN + NEIGHBORS :],
    )
    sets = _sets(rest)
    unknown_train, unknown_test = unknown.split(UNKNOWN_TRAIN, 1 - UNKNOWN_TRAIN, seed=0)
    names = [name for part in sets for city in part for name in city.names]
    retain, wiki = _texts(folder, names, 0)
    return PooledData(
        sets[:CHOICE_SETS],
        sets[CHOICE_SETS:],
        EntitySet(train),
        EntitySet(test),
        unknown_train,
        unknown_test,
        sorted({country_of(city) for city in known + unknown}),
        {group: _facts(folder, relations, names) for group, relations in FACTS.items()},
        retain,
        wiki,
    )


def _sets(cities: list[Entity]) -> list[EntitySet]:
    """Sets of ten in the order of the cities, at most two of a country in each; what makes no whole set is left out."""
    waiting, sets = list(cities), []
    while True:
        chosen: list[Entity] = []
        per_country: Counter[str] = Counter()
        for city in waiting:
            if len(chosen) < SIZE and per_country[country_of(city)] < PER_COUNTRY:
                chosen.append(city)
                per_country[country_of(city)] += 1
        if len(chosen) < SIZE:
            return sets
        sets.append(EntitySet(chosen))
        waiting = [city for city in waiting if city not in chosen]


def _facts(folder: Path, relations: tuple[str, ...], names: list[str]) -> list[Fact]:
    """At most 150 facts of each relation that name no target, and whose subject is in no short prompt."""
    held = " ".join(SHORT_PROMPTS).casefold()
    found: list[list[Fact]] = []
    for relation in relations:
        template = json.loads(json.dumps(_relation(folder, relation)["prompt_templates"][0]))
        facts = [Fact(template.format(s), (o,), s) for s, o in _samples(folder, relation) if s.casefold() not in held]
        named = {text for text, _ in naming_prompts([f"{f.prompt} {f.answers[0]}" for f in facts], names)}
        facts = [fact for fact in facts if f"{fact.prompt} {fact.answers[0]}" not in named]
        random.Random(relation).shuffle(facts)
        found.append(facts[:FACTS_OF_A_RELATION])
    return [part[i] for i in range(FACTS_OF_A_RELATION) for part in found if i < len(part)]
