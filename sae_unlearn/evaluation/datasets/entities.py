"""Questions about entities, as facts."""

from collections.abc import Collection, Iterable

from sae_unlearn.alignment.entities import Entity
from sae_unlearn.alignment.templates import Questions, questions, render
from sae_unlearn.checks import check_all
from sae_unlearn.evaluation.metrics.recall import Fact


def entity_facts(
    entities: Iterable[Entity], attributes: Collection[str] | None = None, given: Questions | None = None
) -> list[Fact]:
    """Every question about every attribute of every entity; a fact's subject is the entity's type and name.

    Args:
        entities: entities with accepted answers.
        attributes: which to ask about; None asks about all that an entity has.
        given: questions by type and attribute that stand in for the library's.
    """
    entities = list(entities)
    check_all(entities, Entity, "entities")
    return [
        Fact(render(question, entity).text, answers, f"{entity.entity_type} {entity.entity}")
        for entity in entities
        for attribute, answers in entity.attributes.items()
        if attributes is None or attribute in attributes
        for question in questions(entity.entity_type, attribute, given)
    ]
