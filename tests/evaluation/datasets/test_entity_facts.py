"""Questions about entities."""

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.templates import questions
from sae_unlearn.evaluation import Fact, entity_facts


CITIES = EntitySet(
    [
        {"entity": "Rome", "entity_type": "city", "country": ["Italy", "Italia"], "river": "Tiber"},
        {"entity": "Nowhere", "entity_type": "city"},
    ]
)


def test_every_attribute_is_asked_about_in_every_wording():
    facts = entity_facts(CITIES)
    assert {fact.subject for fact in facts} == {"city Rome"}
    assert len(facts) == len(questions("city", "country")) + len(questions("city", "river"))
    assert {fact.answers for fact in facts} == {("Italy", "Italia"), ("Tiber",)}
    assert all("Rome" in fact.prompt for fact in facts)


def test_one_attribute_in_own_wording():
    facts = entity_facts(CITIES, ["country"], {"city": {"country": "{entity} is in"}})
    assert facts == [Fact("Rome is in", ("Italy", "Italia"), "city Rome")]
