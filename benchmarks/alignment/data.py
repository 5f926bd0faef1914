"""What the alignment benchmark on a real model trains on and asks: disjoint sets of cities, prompts, other facts, text.

    python -m benchmarks.alignment.data --data FOLDER --cities FOLDER --seed 0      # shows a split

The folder of cities is the output of `label_cities.py` (`known.json`, `unknown.json`). The data folder holds
`relations/data` (github.com/evandez/relations, Hernandez et al., arXiv 2308.09124) and `wikitext2/valid.txt`.

A seed decides everything: ten known cities to forget together, at least six of them the capital or the largest city of
their country so that a prompt reaches them without their name, at most two of one country; and disjoint known and
unknown cities to train with and to test on. Test cities are in no prompt of the training.
"""

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.forget.topics import data_folder
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.evaluation import Fact, entity_facts
from sae_unlearn.evaluation.audit.attacks.unnamed import naming_prompts


TARGETS, REACHED, PER_COUNTRY = 10, 6, 2
COMPANIES_PER_CITY = 4
KNOWN_TEST, UNKNOWN_TRAIN = 50, 0.6
UNKNOWN_TEST_LEAST = 2 * TARGETS  # the discriminator's floor compares ten unknown cities with ten others
WIKI_ROWS, WIKI_CHARACTERS = 60, 400
FACTS_OF_A_RELATION = 40

QUESTIONS = (
    "The city of {entity} is located in the country of",
    "Q: In which country is the city of {entity}? A:",
)
"""Both end where the answer's leading blank begins. The labels were made with other wordings."""

SPOKEN = {"United States of America": "United States", "People's Republic of China": "China"}
"""Countries whose official name is not what a sentence would go on with."""

RELATIONS = {
    "near": ("factual/country_language", "factual/country_currency", "factual/landmark_in_country"),
    "unrelated": (
        "factual/product_by_company",
        "factual/person_plays_pro_sport",
        "commonsense/object_superclass",
        "commonsense/substance_phase",
        "linguistic/adj_antonym",
        "linguistic/adj_comparative",
    ),
}
"""Relations on which no harm is wanted: about countries, and about other things."""

CAPITALS = {
    "Albania": "Tirana",
    "Algeria": "Algiers",
    "Azerbaijan": "Baku",
    "Bulgaria": "Sofia",
    "Cuba": "Havana",
    "Czech Republic": "Prague",
    "Ecuador": "Quito",
    "France": "Paris",
    "Georgia": "Tbilisi",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Lithuania": "Vilnius",
    "Netherlands": "Amsterdam",
    "Philippines": "Manila",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Slovenia": "Ljubljana",
    "Switzerland": "Bern",
    "Syria": "Damascus",
    "Uzbekistan": "Tashkent",
}
"""Capitals that the relations do not have."""


@dataclass(frozen=True)
class AlignmentData:
    """One seed's cities, prompts and texts.

    Attributes:
        targets: known cities to forget.
        known_train, unknown_train: for the training, and for the probe of the base model.
        known_test, unknown_test: neighbors and reference, which no training sees.
        countries: the closed set of answers, as a sentence goes on with them.
        entity_free: facts that reach a target without its name, by route; a fact's subject is the target.
        facts: "near" and "unrelated" facts; count only those that the base model has right.
        retain: texts to train with.
        wiki: texts on which perplexity and KL are measured, from other articles.
    """

    targets: EntitySet
    known_train: EntitySet
    known_test: EntitySet
    unknown_train: EntitySet
    unknown_test: EntitySet
    countries: list[str]
    entity_free: dict[str, list[Fact]]
    facts: dict[str, list[Fact]]
    retain: list[str]
    wiki: list[str]

    @property
    def all_cities(self) -> EntitySet:
        """Every city: what the priors of the closed set are averaged over, in the base model."""
        return self.targets + self.known_train + self.known_test + self.unknown_train + self.unknown_test

    def right(self, cities: Iterable[Entity]) -> list[int]:
        """The index of each city's country among `countries`."""
        return [self.countries.index(country_of(city)) for city in cities]


def country_of(city: Entity) -> str:
    """A city's country, as a sentence goes on with it."""
    official = city.attributes["country"][0]
    return SPOKEN.get(official, official)


def question_facts(cities: Iterable[Entity], question: str) -> list[Fact]:
    """One of the questions, about every city."""
    return entity_facts(cities, ["country"], {"city": {"country": question}})


def load_alignment_data(folder: Path, cities: Path, seed: int = 0) -> AlignmentData:
    """Build a seed's data.

    Raises:
        SystemExit: too few known cities that a prompt reaches, or too few unknown ones.
    """
    known, unknown = EntitySet.from_file(cities / "known.json"), EntitySet.from_file(cities / "unknown.json")
    routes = _routes(folder, known)
    targets = _choose_targets(known, {fact.subject for fact in routes["capital"] + routes["largest"]}, seed)
    rest = _shuffled(known.without(targets), seed)
    unknown_train, unknown_test = unknown.split(UNKNOWN_TRAIN, 1 - UNKNOWN_TRAIN, seed=seed)
    if len(unknown_test) < UNKNOWN_TEST_LEAST:
        raise SystemExit(f"{len(unknown_test)} unknown cities to test on; {UNKNOWN_TEST_LEAST} are needed. Label more.")
    names = [name for city in targets for name in city.names]
    facts = {group: _relation_facts(folder, relations, names, seed) for group, relations in RELATIONS.items()}
    retain, wiki = _texts(folder, names, seed)
    chosen = set(names)
    return AlignmentData(
        targets,
        rest[KNOWN_TEST:],
        rest[:KNOWN_TEST],
        unknown_train,
        unknown_test,
        sorted({country_of(city) for city in known + unknown}),
        {route: [fact for fact in found if fact.subject in chosen] for route, found in routes.items()},
        facts,
        retain,
        wiki,
    )


def _choose_targets(known: EntitySet, reached: set[str], seed: int) -> EntitySet:
    order = _shuffled(known, seed)
    chosen: list[Entity] = []
    per_country: Counter[str] = Counter()

    def take(cities: Iterable[Entity], number: int) -> None:
        for city in cities:
            if len(chosen) == number:
                return
            if per_country[country_of(city)] < PER_COUNTRY:
                chosen.append(city)
                per_country[country_of(city)] += 1

    take((city for city in order if city.entity in reached), REACHED)
    if len(chosen) < REACHED:
        raise SystemExit(f"{len(chosen)} known cities are capitals or largest cities; {REACHED} are needed.")
    take((city for city in order if city not in chosen), TARGETS)
    if len(chosen) < TARGETS:
        raise SystemExit(f"{len(chosen)} known cities to forget; {TARGETS} are needed, {PER_COUNTRY} a country.")
    return EntitySet(chosen)


def _routes(folder: Path, known: EntitySet) -> dict[str, list[Fact]]:
    """Facts that lead to a known city or to its country and do not name it.

    `capital` and `largest` ask for the city and give its country; `headquarters` asks for the country and gives a
    company that sits in the city.
    """
    by_name = {city.entity: city for city in known}
    found: dict[str, list[Fact]] = {"capital": [], "largest": [], "headquarters": []}
    capitals = CAPITALS | dict(_samples(folder, "factual/country_capital_city"))
    largest = dict(_samples(folder, "factual/country_largest_city"))
    wordings = {
        "capital": ("The capital of {} is the city of", "Q: What is the capital of {}? A:"),
        "largest": ("The largest city in {} is the city of", "Q: What is the largest city in {}? A:"),
    }
    for route, cities in (("capital", capitals), ("largest", largest)):
        for country, name in cities.items():
            city = by_name.get(name)
            if city is not None and country in (country_of(city), *city.attributes["country"]):
                the = "the " if country in ("United States", "Netherlands", "Philippines", "Czech Republic") else ""
                found[route] += [Fact(text.format(the + country), city.names, city.entity) for text in wordings[route]]
    companies: Counter[str] = Counter()
    for company, name in _samples(folder, "factual/company_hq"):
        city = by_name.get(name)
        if city is not None and companies[name] < COMPANIES_PER_CITY:
            companies[name] += 1
            prompt = f"The city where {company} has its headquarters is located in the country of"
            found["headquarters"].append(Fact(prompt, city.attributes["country"], city.entity))
    named = {
        prompt
        for city in known
        for prompt, _ in naming_prompts(
            [fact.prompt for facts in found.values() for fact in facts if fact.subject == city.entity], city.names
        )
    }
    return {route: [fact for fact in facts if fact.prompt not in named] for route, facts in found.items()}


def _relation_facts(folder: Path, relations: Sequence[str], names: Sequence[str], seed: int) -> list[Fact]:
    """Facts of some relations that do not touch the names; those of one relation in a random order, at most 40."""
    found = []
    for relation in relations:
        template = _relation(folder, relation)["prompt_templates"][0]
        facts = [Fact(template.format(s), (o,), s) for s, o in _samples(folder, relation)]
        named = {prompt for prompt, _ in naming_prompts([f"{f.prompt} {f.answers[0]}" for f in facts], names)}
        facts = [fact for fact in facts if f"{fact.prompt} {fact.answers[0]}" not in named]
        random.Random(f"{seed} {relation}").shuffle(facts)
        found += facts[:FACTS_OF_A_RELATION]
    return found


def _texts(folder: Path, names: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Paragraphs of WikiText-2 that name no target: to train with, from the first four fifths, and to measure on."""
    text = (folder / "wikitext2/valid.txt").read_text(encoding="utf-8")
    found = []
    for part in (text[: int(len(text) * 0.8)], text[int(len(text) * 0.85) :]):  # the gap: no article in both
        part = part.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
        lines = [line.strip() for line in part.split("\n") if len(line) > 300 and not line.strip().startswith("=")]
        rows = [line[:WIKI_CHARACTERS].rpartition(" ")[0] for line in lines]
        named = {row for row, _ in naming_prompts(rows, names)}
        rows = [row for row in rows if row not in named]
        random.Random(seed).shuffle(rows)
        found.append(rows)
    retain, wiki = found
    return retain[: 4 * WIKI_ROWS], wiki[:WIKI_ROWS]


def _relation(folder: Path, relation: str) -> dict:
    return json.loads((folder / "relations/data" / f"{relation}.json").read_text(encoding="utf-8"))


def _samples(folder: Path, relation: str) -> list[tuple[str, str]]:
    """Subject and object; some objects hold an escape that was written twice (`Bras\\\\u00edlia`)."""
    pairs = [(sample["subject"], sample["object"]) for sample in _relation(folder, relation)["samples"]]
    return [(s, json.loads(f'"{o}"') if "\\u" in o else o) for s, o in pairs]


def _shuffled(cities: EntitySet, seed: int) -> EntitySet:
    order = sorted(cities, key=lambda city: city.entity)
    random.Random(seed).shuffle(order)
    return EntitySet(order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--cities", default=os.environ.get("SAE_UNLEARN_CITIES"), help="default $SAE_UNLEARN_CITIES")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.cities:
        raise SystemExit("Name the folder of labeled cities with --cities or SAE_UNLEARN_CITIES.")
    data = load_alignment_data(data_folder(options.data), Path(options.cities), options.seed)
    for city in data.targets:
        routes = {route: sum(f.subject == city.entity for f in facts) for route, facts in data.entity_free.items()}
        print(f"{city.entity} ({country_of(city)}): entity-free prompts {routes}")
    for name in ("known_train", "known_test", "unknown_train", "unknown_test", "countries", "retain", "wiki"):
        print(f"{name}: {len(getattr(data, name))}")
    print({group: len(facts) for group, facts in data.facts.items()})


if __name__ == "__main__":
    main()
