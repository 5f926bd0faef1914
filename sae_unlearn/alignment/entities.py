"""Sets of entities: the people, cities, films ... of an alignment."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from sae_unlearn.alignment.entity import Entity, key_of, linked, read_entity, with_columns
from sae_unlearn.checks import check_integer, check_number
from sae_unlearn.errors import AlignmentError
from sae_unlearn.files.atomic import write_whole
from sae_unlearn.files.untrusted import as_path, json_lines


class EntitySet(Sequence[Entity]):
    """Entities in a fixed order, no name twice within a type.

    Entities of different types are different, even with equal names.

    Args:
        entities (iterable, *optional*, defaults to ()): `Entity`s, or mappings with `entity`, `entity_type`, optionally
            `aliases`, and either `attributes` (a mapping) or the attributes as further keys. An accepted answer is a
            text or a number, or a list of those.
        entity_type (str, *optional*): Type of mappings without one.

    Raises:
        AlignmentError: If a name occurs twice within a type, or an item is not an entity.
    """

    def __init__(self, entities: Iterable[Entity | Mapping[str, Any]] = (), entity_type: str | None = None) -> None:
        if not isinstance(entities, Iterable):
            raise AlignmentError(
                f"entities={entities!r:.60}: expected a list of Entity or mappings, got {type(entities).__name__}."
            )
        self._entities = tuple(
            item if isinstance(item, Entity) else read_entity(item, entity_type) for item in entities
        )
        seen: dict[tuple[str, str], Entity] = {}
        for entity in self._entities:
            first = seen.setdefault((key_of(entity.entity_type), key_of(entity.entity)), entity)
            if first is not entity:
                raise AlignmentError(
                    f"entity={entity.entity!r}: expected one {entity.entity_type} of that name (compared without "
                    "case), got two. Omit one, or change its name."
                )

    # --- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_file(
        cls, path: str | Path, entity_type: str | None = None, columns: Mapping[str, str | None] | None = None
    ) -> EntitySet:
        """Read a file by its suffix: `.json`, `.jsonl` or `.csv`.

        Args:
            path (str or Path): The file.
            entity_type (str, *optional*): Type of rows without one.
            columns (mapping, *optional*): From columns (or keys) of the file to their content: "entity", "entity_type",
                "aliases", "attributes", or the name of an attribute. None omits a column. Other columns keep their
                names.

        Raises:
            AlignmentError: If the suffix is another one, `columns` names a missing column or one name twice, or the
                reader of the format raises.
        """
        suffix = as_path(path).suffix.lower()
        if suffix in (".json", ".jsonl"):
            return cls.from_json(path, entity_type, columns)
        if suffix == ".csv":
            return cls.from_csv(path, entity_type, columns)
        raise AlignmentError(f"{path}: expected a file that ends in .json, .jsonl or .csv, got {suffix!r}.")

    @classmethod
    def from_json(
        cls, path: str | Path, entity_type: str | None = None, columns: Mapping[str, str | None] | None = None
    ) -> EntitySet:
        """Read a JSON list of entities, or one entity per line in a `.jsonl` file.

        Args:
            path (str or Path): The file.
            entity_type (str, *optional*): Type of rows without one.
            columns (mapping, *optional*): As in `from_file`.

        Raises:
            AlignmentError: If the file is not JSON in UTF-8 or not a list, or an item is not an entity.
        """
        path = as_path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            items = json_lines(text) if path.suffix.lower() == ".jsonl" else json.loads(text)
        except ValueError as error:
            raise AlignmentError(f"{path}: expected JSON in UTF-8, got {error!r}. Save it again.") from error
        if not isinstance(items, list):
            raise AlignmentError(f"{path}: expected a list of entities, got {type(items).__name__}.")
        return cls(with_columns(items, columns), entity_type)

    @classmethod
    def from_csv(
        cls, path: str | Path, entity_type: str | None = None, columns: Mapping[str, str | None] | None = None
    ) -> EntitySet:
        """Read a CSV file with a header: `entity`, `entity_type`, optionally `aliases`, and attributes.

        Aliases and accepted answers are separated by `|`; an empty cell is not an answer.

        Args:
            path (str or Path): The file.
            entity_type (str, *optional*): Type of rows without one.
            columns (mapping, *optional*): As in `from_file`.

        Raises:
            AlignmentError: If a column is missing, a row has more cells than the header, or the file is not CSV in
                UTF-8.
        """
        try:
            with as_path(path).open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise AlignmentError(f"{path}: expected CSV in UTF-8, got {error!r}. Save it again.") from error
        items = []
        for row in rows:
            if None in row:
                first = next(iter(row.values()))
                raise AlignmentError(
                    f"{path}: expected no more cells than in the header, got more in the row of {first!r}."
                )
        for row in with_columns(rows, columns):
            single = ("entity", "entity_type")
            items.append({k: v if k in single else (v or "").split("|") for k, v in row.items()})
        return cls(items, entity_type)

    @classmethod
    def from_dataset(
        cls,
        dataset: Iterable[Mapping[str, Any]],
        entity_type: str | None = None,
        columns: Mapping[str, str | None] | None = None,
    ) -> EntitySet:
        """Read the rows of one split of a `datasets.Dataset`, or any rows with the columns of `from_csv`.

        Args:
            dataset (iterable of mappings): The rows.
            entity_type (str, *optional*): Type of rows without one.
            columns (mapping, *optional*): As in `from_file`.

        Raises:
            AlignmentError: If it is a `DatasetDict`, or a row is not an entity.
        """
        if isinstance(dataset, Mapping):
            raise AlignmentError(f"dataset: expected one split, got {sorted(dataset)}. Pass one of them.")
        return cls(dataset if columns is None else with_columns(dataset, columns), entity_type)

    def to_json(self, path: str | Path) -> None:
        """Write a JSON list that `from_json` reads.

        Args:
            path (str or Path): File that ends in `.json`.

        Raises:
            AlignmentError: If the suffix is another one, which `from_file` would read as another format.
            UnlearnError: If the file cannot be written. An earlier file is then unchanged.
        """
        path = as_path(path)
        if path.suffix.lower() != ".json":
            raise AlignmentError(f"{path}: expected a file that ends in .json, got {path.suffix!r}.")
        write_whole(path, json.dumps([entity.to_dict() for entity in self], ensure_ascii=False, indent=1) + "\n")

    # --- as a sequence -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entities)

    @overload
    def __getitem__(self, index: int) -> Entity: ...
    @overload
    def __getitem__(self, index: slice) -> EntitySet: ...
    def __getitem__(self, index: int | slice) -> Entity | EntitySet:
        return EntitySet(self._entities[index]) if isinstance(index, slice) else self._entities[index]

    def __iter__(self) -> Iterator[Entity]:
        return iter(self._entities)

    def __eq__(self, other: object) -> bool:
        return self._entities == other._entities if isinstance(other, EntitySet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # attributes are dictionaries

    def __add__(self, other: EntitySet) -> EntitySet:
        return EntitySet([*self, *other])

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.of_type(t))} {t}" for t in self.types)
        return f"EntitySet({counts or 'empty'})"

    @property
    def names(self) -> list[str]:
        """The names in order, without aliases."""
        return [entity.entity for entity in self]

    @property
    def types(self) -> list[str]:
        """The types in order of first appearance, each once (compared without case) in its first spelling."""
        found: dict[str, str] = {}
        for entity in self:
            found.setdefault(key_of(entity.entity_type), entity.entity_type)
        return list(found.values())

    # --- parts ---------------------------------------------------------------------------------------------------

    def of_type(self, entity_type: str) -> EntitySet:
        """Return the entities of one type.

        Args:
            entity_type (str): The type, compared without case.

        Raises:
            AlignmentError: If the type is not a text.
        """
        if not isinstance(entity_type, str):
            raise AlignmentError(f"entity_type={entity_type!r}: expected a text, got {type(entity_type).__name__}.")
        return EntitySet(entity for entity in self if key_of(entity.entity_type) == key_of(entity_type))

    def without(self, other: EntitySet) -> EntitySet:
        """Return the entities that share no name or alias, within their type, with any of `other`.

        Args:
            other (EntitySet or rows): The entities to leave out.

        Raises:
            AlignmentError: If `other` is not a set of entities, and cannot become one.
        """
        taken = {key for entity in EntitySet(other) for key in entity.keys}
        return EntitySet(entity for entity in self if not entity.keys & taken)

    def sample(self, n: int, seed: int = 0) -> EntitySet:
        """Return `n` random entities, in their order in the set.

        Args:
            n (int): Number of entities.
            seed (int, *optional*, defaults to 0): Seed of the draw.

        Raises:
            AlignmentError: If the set has fewer than `n`, or `n` is not a whole number.
        """
        check_integer("n", n, 0, len(self), AlignmentError)
        chosen = random.Random(seed).sample(range(len(self)), n)
        return EntitySet(self[i] for i in sorted(chosen))

    def split(self, *fractions: float, seed: int = 0) -> tuple[EntitySet, ...]:
        """Return parts that share no entity. Entities linked by a common name or alias stay together.

        Every type is divided in the same proportions, as near as whole entities allow. The division depends on `seed`
        and on the set, not on the set's order. Fractions that sum to less than 1 leave out the rest.

        Args:
            fractions (float): Share of each set.
            seed (int, *optional*, defaults to 0): Seed of the division.

        Raises:
            AlignmentError: If a fraction is not a positive number, or they sum to more than 1.
        """
        whole = sum(check_number("fractions", part, above=0, error=AlignmentError) for part in fractions)
        if not fractions or whole > 1 + 1e-9:
            raise AlignmentError(f"fractions={fractions}: expected some, with a sum of at most 1. Pass smaller ones.")
        side: dict[int, int] = {}
        for entity_type in sorted({key_of(t) for t in self.types}):
            members = [i for i, entity in enumerate(self) if key_of(entity.entity_type) == entity_type]
            groups = linked(self._entities, members)
            random.Random(f"{seed} {entity_type}").shuffle(groups)
            bounds = [round(len(members) * sum(fractions[: k + 1])) for k in range(len(fractions))]
            done = 0
            for group in groups:
                part = next((k for k, bound in enumerate(bounds) if done < bound), None)
                if part is not None:
                    side |= dict.fromkeys(group, part)
                done += len(group)
        parts = range(len(fractions))
        return tuple(EntitySet(self[i] for i in range(len(self)) if side.get(i) == part) for part in parts)


def as_entity_set(entities: EntitySet | Iterable[Mapping[str, Any]]) -> EntitySet:
    """Return an `EntitySet` as it is, and rows, such as a `datasets.Dataset`, by `EntitySet.from_dataset`."""
    return entities if isinstance(entities, EntitySet) else EntitySet.from_dataset(entities)


def overlap(a: EntitySet, b: EntitySet) -> list[str]:
    """Return the names of the entities of `a` that share a name or alias with one of `b`, within the type."""
    taken = {key for entity in b for key in entity.keys}
    return [entity.entity for entity in a if entity.keys & taken]
