"""An entity: a person, a city, a film ... with the facts about it, and how it is read from a row."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_unlearn.errors import AlignmentError


_OWN_COLUMNS = ("entity", "entity_type", "aliases", "attributes")


@dataclass(frozen=True)
class Entity:
    """One entity: a person, a city, a film ...

    Attributes:
        entity (str): Its name as in prompts. Blanks at the ends are removed.
        entity_type (str): Its type, in words that fit into "The {entity_type} '{entity}'".
        attributes (mapping, *optional*, defaults to {}): Accepted answers for each attribute, the first one canonical.
        aliases (sequence of str, *optional*, defaults to ()): Its other names.

    Raises:
        AlignmentError: If the name or the type is empty, or an attribute is not made of texts.
    """

    entity: str
    entity_type: str
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # a frozen dataclass
        set_field(self, "entity", _text(self.entity, "entity", "a name"))
        set_field(self, "entity_type", _text(self.entity_type, f"entity_type of {self.entity!r}", "a type"))
        set_field(self, "aliases", _answers(self.aliases, f"aliases of {self.entity!r}"))
        if not isinstance(self.attributes, Mapping):
            raise AlignmentError(
                f"attributes of {self.entity!r}: expected a mapping from attribute to accepted answers, got "
                f"{type(self.attributes).__name__}."
            )
        answers = {name: _answers(value, f"{name!r} of {self.entity!r}") for name, value in self.attributes.items()}
        set_field(self, "attributes", {str(name): accepted for name, accepted in answers.items() if accepted})

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.entity, *self.aliases)

    @property
    def keys(self) -> frozenset[tuple[str, str]]:
        """Keys for comparison: type and name for each of its names, casefolded and in Unicode's form NFC."""
        return frozenset((key_of(self.entity_type), key_of(name)) for name in self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the entity as in a JSON file."""
        return {
            "entity": self.entity,
            "entity_type": self.entity_type,
            "attributes": {name: list(accepted) for name, accepted in self.attributes.items()},
            "aliases": list(self.aliases),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Entity":
        """Return the entity from a mapping that `to_dict` made, or a row that `EntitySet` takes.

        Args:
            row (mapping): The row.

        Raises:
            AlignmentError: If it is not a mapping, or lacks a name or a type.
        """
        return read_entity(row)


def read_entity(row: Any, entity_type: str | None = None) -> Entity:
    """Return an entity from a row.

    Args:
        row (Entity or mapping): With `entity`, `entity_type`, optionally `aliases`, and either `attributes` (a mapping)
            or the attributes as further keys.
        entity_type (str, *optional*): Type of a row without one.

    Raises:
        AlignmentError: If the row is not an entity.
    """
    if not isinstance(row, Mapping):
        raise AlignmentError(f"entities: expected an Entity or a mapping, got {type(row).__name__}.")
    if "entity" not in row or not (row.get("entity_type") or entity_type):
        raise AlignmentError(
            f"entities: expected columns 'entity' and 'entity_type', got {sorted(map(str, row))}. "
            "Pass entity_type= for rows "
            "without one, and columns= for other names."
        )
    others = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
    attributes = row.get("attributes")
    if attributes is not None and others:
        raise AlignmentError(
            f"attributes of {row['entity']!r}: expected no further columns, got {sorted(others)}. "
            "Put them into 'attributes'."
        )
    if attributes is None:
        attributes = others
    return Entity(row["entity"], str(row.get("entity_type") or entity_type), attributes, row.get("aliases") or ())


def with_columns(rows: Iterable[Any], columns: Mapping[str, str | None] | None) -> list[Any]:
    """Return rows with their columns renamed.

    A row that is not a mapping is left for `read_entity`, which raises.

    Args:
        rows (iterable): The rows.
        columns (mapping, *optional*): From a column to its new name. None as a name omits the column.

    Raises:
        AlignmentError: If no row has such a column, or two columns of a row would have one name.
    """
    rows = list(rows)
    if not columns:
        return rows
    if not isinstance(columns, Mapping) or not all(new is None or isinstance(new, str) for new in columns.values()):
        raise AlignmentError(f"columns={columns!r:.60}: expected a mapping of names to names. Pass a dictionary.")
    there = {name for row in rows if isinstance(row, Mapping) for name in row}
    if missing := sorted(map(str, {*columns} - there)):
        found = ", ".join(sorted(map(str, there)))
        raise AlignmentError(f"columns={missing[0]!r}: expected one of {found:.100}. Correct the name.")
    renamed: list[Any] = []
    for row in rows:
        if not isinstance(row, Mapping):
            renamed.append(row)
            continue
        kept = [(columns.get(name, name), value) for name, value in row.items()]
        names = [name for name, _ in kept if name is not None]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise AlignmentError(f"columns={twice!r}: expected one column of that name, got two. Map one to None.")
        renamed.append({name: value for name, value in kept if name is not None})
    return renamed


def key_of(name: str) -> str:
    """Return the form in which names and types are compared: casefolded, and in Unicode's form NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def linked(entities: Sequence[Entity], members: Iterable[int]) -> list[list[int]]:
    """Return groups of `members` that share names, directly or through others, in an order of their own.

    Args:
        entities (sequence of Entity): The entities.
        members (iterable of int): Indices of those to group.
    """
    group_of: dict[tuple[str, str], list[int]] = {}
    groups: dict[int, list[int]] = {}
    for i in members:
        merged = [i]
        for old in {id(group_of[key]): group_of[key] for key in entities[i].keys if key in group_of}.values():
            merged += old
            groups.pop(id(old))
        groups[id(merged)] = merged
        group_of |= {key: merged for j in merged for key in entities[j].keys}
    return sorted(groups.values(), key=lambda group: min(min(entities[j].keys) for j in group))


def _text(value: Any, what: str, expected: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise AlignmentError(f"{what}={value!r}: expected {expected} of at least one character.")
    return value.strip()


def _answers(value: Any, what: str) -> tuple[str, ...]:
    """Accepted answers as stripped texts, each once. None and empty texts are not answers."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    found = []
    for answer in values:
        if answer is not None and not isinstance(answer, (str, int, float)):
            raise AlignmentError(f"{what}={value!r}: expected a text, a number, or a list of those.")
        if (
            answer is not None and answer == answer and str(answer).strip()
        ):  # NaN, a table's empty cell, differs from itself
            found.append(str(answer).strip())
    return tuple(dict.fromkeys(found))
