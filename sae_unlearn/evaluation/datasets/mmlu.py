"""MMLU: multiple-choice questions of 57 subjects (Hendrycks et al., 2021, arXiv 2009.03300).

MIT license. Hub: `cais/mmlu`. In a folder: `test/anatomy_test.csv` as the authors publish it (no header, the answer as
a letter), or with a header `question,choice0,...,answer` and the answer's index; or the Hub's `anatomy/test-*.parquet`.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.choices import Choice


HUB_ID = "cais/mmlu"


def mmlu_choices(subject: str, source: str = HUB_ID, split: str = "test", revision: str | None = None) -> list[Choice]:
    """Return the questions of a subject, with their options.

    Args:
        subject (str): Such as `college_biology`.
        source (str, *optional*, defaults to "cais/mmlu"): A folder, or the id of a dataset on the Hub.
        split (str, *optional*, defaults to "test"): `test`, `dev`, or the source's name of a split.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
        UnlearnError: If a row is not a question with options.
    """
    folder = Path(source).expanduser()
    names = (f"{split}/{subject}_{split}.csv", f"data/{split}/{subject}_{split}.csv")
    table = next((folder / name for name in names if (folder / name).is_file()), None)
    if table is not None:
        return exam_choices(_table_rows(table), str(table))
    files = [*names, f"{subject}/{split}-*.parquet", f"{subject}/{split}.json*"]
    return exam_choices(read_rows(source, files, subject, split, revision), source)


def exam_choices(rows: Iterable[Mapping[str, Any]], source: str, subject_column: str | None = None) -> list[Choice]:
    """Return rows with `question`, `choices` and `answer` (a 0-based index or a letter) as choices.

    Questions with an empty or repeated option are left out, since they do not have one right answer.

    Args:
        rows (iterable of mapping): The rows.
        source (str): Name of the source, for errors.
        subject_column (str, *optional*): Column with the subject of a question, for questions that are not independent.
            MMLU's own `subject` is the exam, whose questions are independent.

    Raises:
        UnlearnError: If a row lacks one of the fields, or no question is left.
    """
    found = []
    for row in rows:
        question, options, answer = text_of(dict(row), "question", source), row.get("choices"), row.get("answer")
        if not isinstance(options, (list, tuple)):
            raise UnlearnError(f"{source}: expected rows with a list `choices`, got {', '.join(row)}.")
        place = _place(answer)
        if not 0 <= place < len(options):
            raise UnlearnError(f"answer={answer!r} of {question[:60]!r} in {source}: expected 0 to {len(options) - 1}.")
        options = tuple(str(option).strip() for option in options)
        if all(options) and len(set(options)) == len(options):
            found.append(Choice(question.strip(), options, place, str(row.get(str(subject_column)) or "")))
    if not found:
        raise UnlearnError(f"{source}: expected at least one question with different options.")
    return found


def _place(answer: Any) -> int:
    """The 0-based index that an answer names, or -1."""
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
        raise UnlearnError(
            f"{path}: expected rows of question, options and answer, got one with {min(map(len, rows))} columns."
        )
    return [{"question": row[0], "choices": row[1:-1], "answer": row[-1]} for row in rows]
