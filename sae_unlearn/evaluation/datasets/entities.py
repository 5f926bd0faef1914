"""Questions about entities, as facts."""

from collections.abc import Collection, Iterable

from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.templates import Questions, questions, render
from sae_unlearn.checks import check_all
from sae_unlearn.evaluation.metrics.recall import Fact


def entity_facts(
    entities: Iterable[Entity], attributes: Collection[str] | None = None, given: Questions | None = None
) -> list[Fact]:
    """Return the questions about the attributes of entities.

    A fact's subject is the entity's type and name.

    Args:
        entities (iterable of Entity): Entities with accepted answers.
        attributes (collection of str, *optional*): Attributes to ask for. None asks for all.
        given (Questions, *optional*): Questions by type and attribute that replace those of the library.

    Raises:
        UnlearnError: If an item is not an `Entity`.
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
