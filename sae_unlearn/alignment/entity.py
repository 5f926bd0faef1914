"""One entity: a person, a city, a film ... with what there is to know of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_unlearn.alignment.errors import AlignmentError


_OWN_COLUMNS = ("entity", "entity_type", "aliases", "attributes")


@dataclass(frozen=True)
class Entity:
    """One entity.

    Attributes:
        entity: its name, as it stands in prompts; blanks at the ends are taken off.
        entity_type: what it is, in words that fit into "The {entity_type} '{entity}'".
        attributes: for each attribute the accepted answers, the first one canonical.
        aliases: its other names.

    Raises:
        AlignmentError: an empty name or type, or attributes that are not texts.
    """

    entity: str
    entity_type: str
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the way into a frozen dataclass
        set_field(self, "entity", _text(self.entity, "entity", "a name"))
        set_field(self, "entity_type", _text(self.entity_type, f"entity_type of {self.entity!r}", "a type"))
        set_field(self, "aliases", _answers(self.aliases, f"aliases of {self.entity!r}"))
        if not isinstance(self.attributes, Mapping):
            raise AlignmentError(
                f"The attributes of {self.entity!r} are a {type(self.attributes).__name__}; expected a mapping from "
                "attribute to accepted answers."
            )
        answers = {name: _answers(value, f"{name!r} of {self.entity!r}") for name, value in self.attributes.items()}
        set_field(self, "attributes", {str(name): accepted for name, accepted in answers.items() if accepted})

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.entity, *self.aliases)

    @property
    def keys(self) -> frozenset[tuple[str, str]]:
        """What it is compared by: type and name for each of its names, casefolded and in Unicode's form NFC."""
        return frozenset((key_of(self.entity_type), key_of(name)) for name in self.names)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a JSON file."""
        return {
            "entity": self.entity,
            "entity_type": self.entity_type,
            "attributes": {name: list(accepted) for name, accepted in self.attributes.items()},
            "aliases": list(self.aliases),
        }


def read_entity(row: Any, entity_type: str | None = None) -> Entity:
    """An entity from a row: a mapping with `entity`, `entity_type`, optionally `aliases`, and either `attributes` (a
    mapping) or the attributes as further keys.

    Args:
        entity_type: the type of a row that names none.

    Raises:
        AlignmentError: a row that is no entity.
    """
    if not isinstance(row, Mapping):
        raise AlignmentError(f"An entity is given as a {type(row).__name__}; expected an Entity or a mapping.")
    if "entity" not in row or not (row.get("entity_type") or entity_type):
        raise AlignmentError(
            f"An entity has the columns {sorted(map(str, row))}; expected 'entity' and 'entity_type' (or pass "
            "entity_type=, the type of all that name none)."
        )
    others = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
    attributes = row.get("attributes")
    if attributes is not None and others:
        raise AlignmentError(
            f"{row['entity']!r} has both 'attributes' and the columns {sorted(others)}; put those into 'attributes'."
        )
    if attributes is None:
        attributes = others
    return Entity(row["entity"], str(row.get("entity_type") or entity_type), attributes, row.get("aliases") or ())


def key_of(name: str) -> str:
    """What names and types are compared by: casefolded, and in Unicode's form NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _text(value: Any, what: str, expected: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise AlignmentError(f"The {what} is {value!r}; expected {expected} of at least one character.")
    return value.strip()


def _answers(value: Any, what: str) -> tuple[str, ...]:
    """One accepted answer or several, as stripped texts, each once; None and empty ones are no answer."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    found = []
    for answer in values:
        if answer is not None and not isinstance(answer, (str, int, float)):
            raise AlignmentError(f"{what} is {value!r}; expected a text, a number, or a list of those.")
        if answer is not None and answer == answer and str(answer).strip():  # NaN, a table's empty cell, is not itself
            found.append(str(answer).strip())
    return tuple(dict.fromkeys(found))
