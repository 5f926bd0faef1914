"""The result of asking a model which entities it knows."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_unlearn.alignment.entities import Entity, EntitySet
from sae_unlearn.alignment.labelling.answer_log import Asked
from sae_unlearn.errors import AlignmentError
from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path


ANSWERS = "answers.jsonl"
LABELS = ("known", "unknown", "dropped")


@dataclass(frozen=True)
class LabelledEntities:
    """Entities divided by what a model knows of them, in the candidates' order.

    Attributes:
        known, unknown: entities that the model knows, and of which it knows nothing.
        dropped: those in between.
        answers: what was asked about each and what the model answered, entity by entity.
        settings: of the model, the sampling and the rule.
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
    ) -> "LabelledEntities":
        """Label each candidate by its answers.

        Args:
            label: from attribute -> matches of each of its questions to one of `LABELS`.

        Raises:
            AlignmentError: `candidates` is no set of entities, or nothing was asked about one of them.
        """
        candidates, answers = EntitySet(candidates), tuple(answers)
        matches: dict[tuple[str, str], dict[str, list[int]]] = {}
        for asked in answers:
            of_entity = matches.setdefault((asked.entity_type, asked.entity), {})
            of_entity.setdefault(asked.attribute, []).append(asked.matches)
        parts: dict[str, list[Entity]] = {name: [] for name in LABELS}
        for entity in candidates:
            if (entity.entity_type, entity.entity) not in matches:
                raise AlignmentError(f"No answer is about {entity.entity!r}; ask about it, or leave it out.")
            parts[label(matches[entity.entity_type, entity.entity])].append(entity)
        known, unknown, dropped = (EntitySet(parts[name]) for name in LABELS)
        return cls(known, unknown, dropped, answers, settings)

    def answers_about(self, entity: Entity) -> list[Asked]:
        """What was asked about one entity.

        Raises:
            AlignmentError: it is no `Entity`, but for instance a name.
        """
        if not isinstance(entity, Entity):
            raise AlignmentError(f"entity={entity!r:.60} is a {type(entity).__name__}; pass an Entity.")
        return [a for a in self.answers if (a.entity_type, a.entity) == (entity.entity_type, entity.entity)]

    def summary(self) -> dict[str, Any]:
        """How many entities of each type are known, unknown and dropped; and for each attribute how many questions
        were asked, and the share of answers that match, among all entities and among those of each label."""
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
        """Write `known.json`, `unknown.json`, `dropped.json`, `answers.jsonl`, `settings.json` and, to be read by
        people, `summary.json` into a folder. A kill at any moment leaves the old ones, the new ones, or files that
        `load` refuses for want of the answers.

        Raises:
            UnlearnError: it cannot be written; what was there is as it was.
        """
        with staged(as_path(folder), key=ANSWERS) as stage:
            for name in LABELS:
                getattr(self, name).to_json(stage / f"{name}.json")
            (stage / ANSWERS).write_text("".join(a.to_line() for a in self.answers), encoding="utf-8")
            for name, values in (("settings", self.settings), ("summary", self.summary())):
                text = json.dumps(values, ensure_ascii=False, indent=1)
                (stage / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "LabelledEntities":
        """Read what `save` has written.

        Raises:
            AlignmentError: a file that is missing or malformed.
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
            raise AlignmentError(f"{folder} holds no labelled entities ({error}); label them again.") from error
        return cls(known, unknown, dropped, answers, settings)
