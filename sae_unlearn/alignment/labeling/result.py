"""Result of labeling: known, unknown and dropped entities, with the answers."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling.answer_log import Asked
from sae_unlearn.errors import AlignmentError
from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path


ANSWERS = "answers.jsonl"
LABELS = ("known", "unknown", "dropped")


@dataclass(frozen=True)
class LabeledEntities:
    """Entities divided by what a model knows of them, in the candidates' order.

    Attributes:
        known (EntitySet): Entities that the model knows.
        unknown (EntitySet): Entities that it does not know.
        dropped (EntitySet): Those in between.
        answers (tuple of Asked): Questions about each entity with the model's answers, entity by entity.
        settings (dict): Settings of the model, the sampling and the rule.
    """

    known: EntitySet
    unknown: EntitySet
    dropped: EntitySet
    answers: tuple[Asked, ...]
    settings: dict[str, Any]

    @classmethod
    def divide(
        cls,
        candidates: EntitySet,
        answers: Iterable[Asked],
        label: Callable[[dict[str, list[int]]], str],
        settings: dict[str, Any],
    ) -> "LabeledEntities":
        """Label each candidate by its answers.

        Args:
            candidates (EntitySet): The candidates.
            answers (iterable of Asked): The answers.
            label (callable): From attribute -> matches of each of its questions to one of `LABELS`.
            settings (dict): Settings of the model, the sampling and the rule.

        Raises:
            AlignmentError: If `candidates` is not a set of entities, or has one without answers.
        """
        candidates, answers = EntitySet(candidates), tuple(answers)
        matches: dict[tuple[str, str], dict[str, list[int]]] = {}
        for asked in answers:
            of_entity = matches.setdefault((asked.entity_type, asked.entity), {})
            of_entity.setdefault(asked.attribute, []).append(asked.matches)
        parts: dict[str, list[Entity]] = {name: [] for name in LABELS}
        for entity in candidates:
            if (entity.entity_type, entity.entity) not in matches:
                raise AlignmentError(
                    f"answers: expected some about {entity.entity!r}, got none. Ask about it, or omit it."
                )
            parts[label(matches[entity.entity_type, entity.entity])].append(entity)
        known, unknown, dropped = (EntitySet(parts[name]) for name in LABELS)
        return cls(known, unknown, dropped, answers, settings)

    def answers_about(self, entity: Entity) -> list[Asked]:
        """Return the questions about one entity.

        Args:
            entity (Entity): The entity.

        Raises:
            AlignmentError: If it is not an `Entity`, for example a name.
        """
        if not isinstance(entity, Entity):
            raise AlignmentError(f"entity={entity!r:.60}: expected an Entity, got {type(entity).__name__}.")
        return [a for a in self.answers if (a.entity_type, a.entity) == (entity.entity_type, entity.entity)]

    def summary(self) -> dict[str, Any]:
        """Return counts of labels by type, and the questions and matches of each attribute.

        The share of matching answers is given among all entities and among those of each label.
        """
        label_of = {(e.entity_type, e.entity): name for name in LABELS for e in getattr(self, name)}
        types: dict[str, Any] = {}
        for asked in self.answers:
            of_type = types.setdefault(asked.entity_type, {})
            counts = of_type.setdefault(asked.attribute, {name: [0, 0, 0] for name in ("all", *LABELS)})
            for name in ("all", label_of[asked.entity_type, asked.entity]):
                one = (1, asked.matches, len(asked.answers))
                counts[name] = [a + b for a, b in zip(counts[name], one, strict=True)]
        return {
            entity_type: {
                **{name: len(getattr(self, name).of_type(entity_type)) for name in LABELS},
                "attributes": {
                    attribute: {
                        "questions": counts["all"][0],
                        "match_rate": {
                            name: matches / answers for name, (_, matches, answers) in counts.items() if answers
                        },
                    }
                    for attribute, counts in attributes.items()
                },
            }
            for entity_type, attributes in types.items()
        }

    def save(self, folder: str | Path) -> None:
        """Write the entities, the answers, the settings and a summary into a folder.

        The files are `known.json`, `unknown.json`, `dropped.json`, `answers.jsonl`, `settings.json` and
        `summary.json`, which is for readers only. A kill at any moment leaves the old files, the new ones, or files
        that `load` refuses since the answers are missing.

        Args:
            folder (str or Path): The folder.

        Raises:
            UnlearnError: If the folder cannot be written. Its content is then unchanged.
        """
        with staged(as_path(folder), key=ANSWERS) as stage:
            for name in LABELS:
                getattr(self, name).to_json(stage / f"{name}.json")
            (stage / ANSWERS).write_text("".join(a.to_line() for a in self.answers), encoding="utf-8")
            for name, values in (("settings", self.settings), ("summary", self.summary())):
                text = json.dumps(values, ensure_ascii=False, indent=1)
                (stage / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "LabeledEntities":
        """Load what `save` wrote.

        Args:
            folder (str or Path): The folder that `save` wrote.

        Raises:
            AlignmentError: If a file is missing or malformed.
        """
        folder = as_path(folder)
        try:
            known, unknown, dropped = (EntitySet.from_json(folder / f"{name}.json") for name in LABELS)
            lines = (folder / ANSWERS).read_text(encoding="utf-8").split("\n")
            answers = tuple(Asked.from_dict(json.loads(line)) for line in lines if line)
            settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        except AlignmentError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise AlignmentError(
                f"folder={str(folder)!r}: expected labeled entities, got {error!r}. Label them again."
            ) from error
        return cls(known, unknown, dropped, answers, settings)
