"""MMLU: multiple-choice questions of 57 subjects (Hendrycks et al., 2021, arXiv 2009.03300; MIT license).

Hub: `cais/mmlu`. In a folder: `test/anatomy_test.csv` as the authors publish it (no header, the answer as a letter), or
with a header `question,choice0,...,answer` and the answer's place; or the Hub's `anatomy/test-*.parquet`.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.choices import Choice


HUB_ID = "cais/mmlu"


def mmlu_choices(subject: str, source: str = HUB_ID, split: str = "test", revision: str | None = None) -> list[Choice]:
    """The questions of a subject, with their options.

    Args:
        subject: such as `college_biology`.
        source: a folder, or a dataset's id on the Hub.
        split: `test`, `dev`, or what the source calls them.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a row that is no question with options.
    """
    folder = Path(source).expanduser()
    names = (f"{split}/{subject}_{split}.csv", f"data/{split}/{subject}_{split}.csv")
    table = next((folder / name for name in names if (folder / name).is_file()), None)
    if table is not None:
        return exam_choices(_table_rows(table), str(table))
    files = [*names, f"{subject}/{split}-*.parquet", f"{subject}/{split}.json*"]
    return exam_choices(read_rows(source, files, subject, split, revision), source)


def exam_choices(rows: Iterable[Mapping[str, Any]], source: str, subject_column: str | None = None) -> list[Choice]:
    """Rows with `question`, `choices` and `answer` (a place from 0, or a letter). Questions with an option that is
    empty or there twice are left out: they have no one right answer.

    Args:
        subject_column: holds what a question is about, where questions about the same thing are not independent.
            MMLU's own `subject` is the exam, whose questions are.

    Raises:
        ValueError: a row without them, or no question that is left.
    """
    found = []
    for row in rows:
        question, options, answer = text_of(dict(row), "question", source), row.get("choices"), row.get("answer")
        if not isinstance(options, (list, tuple)):
            raise ValueError(f"A row of {source} has no list of choices, only {', '.join(row)}.")
        place = _place(answer)
        if not 0 <= place < len(options):
            raise ValueError(f"{question[:60]!r} of {source} has answer {answer!r}; expected 0 to {len(options) - 1}.")
        options = tuple(str(option).strip() for option in options)
        if all(options) and len(set(options)) == len(options):
            found.append(Choice(question.strip(), options, place, str(row.get(str(subject_column)) or "")))
    if not found:
        raise ValueError(f"{source} holds no questions.")
    return found


def _place(answer: Any) -> int:
    """The place from 0 that an answer names; -1 if it names none."""
    text = str(answer).strip()
    if text.isdecimal():
        return int(text)
    return ascii_uppercase.find(text) if len(text) == 1 else -1


def _table_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    if rows and rows[0][:1] == ["question"]:
        rows = rows[1:]
    if any(len(row) < 4 for row in rows):
        raise ValueError(f"{path} has a row with {min(map(len, rows))} columns; expected question, options, answer.")
    return [{"question": row[0], "choices": row[1:-1], "answer": row[-1]} for row in rows]
