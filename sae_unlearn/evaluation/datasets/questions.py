"""Facts and choices from a user's own file."""

from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.datasets.files import read_file, text_of
from sae_unlearn.evaluation.datasets.mmlu import exam_choices
from sae_unlearn.evaluation.metrics.choices import Choice
from sae_unlearn.evaluation.metrics.recall import Fact


def read_questions(path: Path) -> list[Fact] | list[Choice] | None:
    """Return the facts or choices of a `.json` or `.jsonl` file, or None if its first row is neither.

    Facts are rows with `prompt` and `answers` (a list, the canonical one first) or `answer`. Choices are rows with
    `question`, `choices` and `answer` (a 0-based index or a letter). Both may have a `subject`.

    Args:
        path (Path): The file.

    Raises:
        UnlearnError: If a later row is of another kind than the first.
    """
    if path.suffix.lower() not in (".json", ".jsonl"):
        return None
    try:
        rows = read_file(path)
    except ValueError:
        return None  # texts or no rows: the reader of texts raises if needed
    if "prompt" in rows[0] and ("answers" in rows[0] or "answer" in rows[0]):
        return [_fact(row, path) for row in rows]
    if {"question", "choices", "answer"} <= set(rows[0]):
        return exam_choices(rows, str(path), "subject")
    return None


def _fact(row: dict[str, Any], path: Path) -> Fact:
    prompt = text_of(row, "prompt", str(path))
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise UnlearnError(f"answers={answers!r} of {prompt[:60]!r} in {path}: expected a text, or a list of texts.")
    return Fact(prompt.rstrip(), tuple(answers), str(row.get("subject") or ""))
