"""The parts of the alignment benchmark on a real model that need no model."""

from benchmarks.alignment.data import question_facts
from benchmarks.alignment.real_measures import TRAINED_QUESTIONS, taught_and_rest
from sae_unlearn.alignment import EntitySet


CITIES = EntitySet(
    {"entity": name, "entity_type": "city", "attributes": {"country": [country]}}
    for name, country in (
        ("Tashkent", "Uzbekistan"),
        ("Lisbon", "Portugal"),
        ("Sofia", "Bulgaria"),
        ("Osaka", "Japan"),
        ("Lima", "Peru"),
        ("Turin", "Italy"),
    )
)


def test_no_city_that_is_taught_is_among_those_measured_for_what_comes_back():
    for seed in range(5):
        taught, facts, rest = taught_and_rest(CITIES, seed)
        assert len(taught) == len(rest) == 3
        assert {*taught.names, *rest.names} == {*CITIES.names}
        asked = {fact.prompt for fact in facts}
        assert asked == {fact.prompt for fact in question_facts(taught, TRAINED_QUESTIONS[0])}
        assert not any(name in prompt for name in rest.names for prompt in asked)
