"""What `rivals` teaches, takes out again and asks, of TOFU and of LUME. `rivals_plan.md` fixes the numbers.

The data folder holds `tofu/` (`forget05.json`, `retain95.json`, `real_authors_perturbed.json`,
`world_facts_perturbed.json`), `lume/` (`forget.jsonl`, `retain.jsonl`), `mmlu/` and `wikitext2/`.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.forget.setting import PlainText, Size, Texts, load_texts
from sae_unlearn.evaluation import Fact
from sae_unlearn.evaluation.audit.attacks.rephrasing import TEMPLATES, rephrased
from sae_unlearn.evaluation.datasets import tofu_facts


SETS = ("tofu", "lume")
PER_AUTHOR = 20
OTHER = Size(fit=1, other_fit=100, validation=1, other_validation=10, choices=40)
"""Text and questions that have to do with neither set."""
SPLIT_BY = "nutrition"  # the subject that `load_texts` is asked for; only its other text and other questions are used


@dataclass(frozen=True)
class Contest:
    """The rows of one set.

    Attributes:
        taught: what the base model is taught, the rows of both sides.
        forget: all rows to forget.
        keep: rows of the other side, and other text, that methods may fit or train on.
        validation, other_validation: rows that choose a method's strength.
        asked: the reported questions by name; `forget` is those to forget.
        paraphrased: the questions of `asked["forget"]` in other words.
        relearned: questions to forget, of entities that `asked` has nothing of.
        names: who or what is to be forgotten, for a prompt.
        other: texts and questions of MMLU.
    """

    name: str
    taught: list[PlainText]
    forget: list[PlainText]
    keep: list[PlainText]
    validation: list[PlainText]
    other_validation: list[PlainText]
    asked: dict[str, list[Fact]]
    paraphrased: list[Fact]
    relearned: list[Fact]
    names: str
    other: Texts


def load_contest(folder: Path, name: str) -> Contest:
    """The rows of a set."""
    return {"tofu": _tofu, "lume": _lume}[name](folder)


def as_row(fact: Fact) -> PlainText:
    """A fact as a row whose answer is scored."""
    return PlainText(fact.prompt, fact.answers[0])


def as_text(row: PlainText) -> str:
    """A row as one text."""
    return f"{row.prompt} {row.answer}".strip()


def _general(folder: Path) -> tuple[Texts, dict[str, list[Fact]]]:
    source = str(folder / "tofu")
    facts = {name: tofu_facts(name, source)[::4][:24] for name in ("real_authors", "world_facts")}
    return load_texts(folder, SPLIT_BY, OTHER), facts


def _tofu(folder: Path) -> Contest:
    """Six authors to forget, of whom the last is for relearning alone, and ten to keep."""
    source = str(folder / "tofu")
    forget, keep = tofu_facts("forget05", source)[: 6 * PER_AUTHOR], tofu_facts("retain95", source)[: 10 * PER_AUTHOR]
    rows = _read(folder / "tofu/forget05.json")[: len(forget)]
    reported = [i for i in range(5 * PER_AUTHOR) if i % PER_AUTHOR % 3 == 0]
    aside = [i for i in range(5 * PER_AUTHOR) if i % PER_AUTHOR in (1, 10)]
    kept = [i for i in range(8 * PER_AUTHOR) if i % 5 == 0]
    kept_aside = range(8 * PER_AUTHOR, 10 * PER_AUTHOR, 4)
    other, general = _general(folder)
    authors = [rows[i : i + PER_AUTHOR] for i in range(0, len(rows), PER_AUTHOR)]
    names = [Counter(row["subject"] for row in some).most_common(1)[0][0] for some in authors]
    return Contest(
        "tofu",
        taught=[as_row(fact) for fact in (*forget, *keep)],
        forget=[as_row(fact) for fact in forget],
        keep=[
            *(as_row(fact) for i, fact in enumerate(keep) if i not in {*kept, *kept_aside}),
            *map(PlainText, other.other_fit),
        ],
        validation=[as_row(forget[i]) for i in aside],
        other_validation=[*(as_row(keep[i]) for i in kept_aside), *map(PlainText, other.other_validation)],
        asked={"forget": [forget[i] for i in reported], "retain": [keep[i] for i in kept], **general},
        paraphrased=[
            replace(forget[i], prompt=f"Question: {rows[i]['paraphrased_question']}\nAnswer:") for i in reported
        ],
        relearned=forget[5 * PER_AUTHOR :],
        names=", ".join(names),
        other=other,
    )


@dataclass(frozen=True)
class Entity:
    """A story, a person or a biography of LUME: its text and its questions."""

    task: str
    beginning: str
    rest: str
    questions: list[Fact]

    @property
    def name(self) -> str:
        """Who or what it is about."""
        if self.task == "Task1":  # a story: the first names in its question or else in itself
            question = self.questions[0].prompt.removeprefix("Question: ").partition("\nAnswer:")[0]
            found = [re.findall(r"(?<=\s)[A-Z]\w+", text) for text in (question, self.beginning)]
            return " and ".join((found[0] or found[1])[:2])
        return self.beginning.partition("\n")[0].partition(" was born")[0]


def entities(path: Path, numbers: dict[str, int]) -> list[Entity]:
    """The first entities of each task in a file of LUME."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {task: {} for task in numbers}
    for row in _read(path):
        key = re.sub(r"(sc|qa)\d+$", "", row["id"])
        found[row["task"]].setdefault(key, []).append(row)
    some = []
    for task, number in numbers.items():
        whole = [rows for rows in found[task].values() if "sc" in rows[0]["id"][-3:] and len(rows) > 1]
        for key, rows in enumerate(whole[:number]):
            questions = [
                Fact(f"Question: {row['input']}\nAnswer:", (row["output"],), f"{path.stem} {task} {key}")
                for row in rows[1:]
            ]
            some.append(Entity(task, rows[0]["input"], rows[0]["output"], questions))
    return some


def _lume(folder: Path) -> Contest:
    """Twelve stories, eight persons and twelve biographies of each side, the last two of each put aside."""
    numbers = {"Task1": 12, "Task2": 8, "Task3": 12}
    sides = {side: entities(folder / f"lume/{side}.jsonl", numbers) for side in ("forget", "retain")}
    last = {10, 11, 18, 19, 30, 31}
    forget, keep = sides["forget"], sides["retain"]
    shown = [e for i, e in enumerate(forget) if i not in last]
    asked = [q for e in shown for q in e.questions[::2]]
    kept = [q for i, e in enumerate(keep) if i not in last for q in e.questions[::3]]
    validation = [as_row(q) for e in shown for q in e.questions[1::2]]
    validation += [PlainText(e.beginning, e.rest) for e in shown if e.task != "Task2"][::2]
    aside = [as_row(q) for i, e in enumerate(keep) if i in last for q in e.questions]
    other, general = _general(folder)
    keep_rows = _rows(keep)
    not_fitted = {*aside, *map(as_row, kept)}
    return Contest(
        "lume",
        taught=[*_rows(forget), *keep_rows],
        forget=_rows(forget),
        keep=[*(row for row in keep_rows if row not in not_fitted), *map(PlainText, other.other_fit)],
        validation=validation,
        other_validation=[*aside, *map(PlainText, other.other_validation)],
        asked={"forget": asked, "retain": kept, **general},
        paraphrased=[replace(q, prompt=rephrased(q.prompt, TEMPLATES["quiz"])) for q in asked],
        relearned=[q for i, e in enumerate(forget) if i in last for q in e.questions],
        names=", ".join(e.name for e in forget),
        other=other,
    )


def _rows(some: list[Entity]) -> list[PlainText]:
    """Each entity's text, scored whole, and its questions."""
    return [row for e in some for row in (PlainText(f"{e.beginning} {e.rest}"), *map(as_row, e.questions))]


def _read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]
