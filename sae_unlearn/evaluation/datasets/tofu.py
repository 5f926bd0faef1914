"""TOFU: questions about fictitious authors (Maini et al., 2024, arXiv 2401.06121; MIT license).

Hub: `locuslab/TOFU`. In a folder: `forget10.json`, `forget10_perturbed.json` and so on, as lists or one object per
    line.
"""

from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.choices import Choice
from sae_unlearn.evaluation.metrics.recall import Fact


HUB_ID = "locuslab/TOFU"
_PER_AUTHOR = 20
_OF_AUTHORS = ("full", "forget", "retain")


def tofu_facts(subset: str = "forget10", source: str = HUB_ID, revision: str | None = None) -> list[Fact]:
    """Return questions and answers, to answer in free text.

    Args:
        subset (str, *optional*, defaults to "forget10"): `forget01`, `forget05`, `forget10`, `retain90` ...,
            `real_authors`, `world_facts`.
        source (str, *optional*, defaults to "locuslab/TOFU"): A folder, or the id of a dataset on the Hub.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
    """
    rows = _rows(subset, (subset, f"{subset}_perturbed"), source, revision)
    return [
        Fact(_prompt(text_of(row, "question", source)), (text_of(row, "answer", source),), subject)
        for row, subject in zip(rows, _authors(subset, len(rows)), strict=True)
    ]


def tofu_choices(subset: str = "forget10", source: str = HUB_ID, revision: str | None = None) -> list[Choice]:
    """Return each question with its true answer first and the perturbed ones after it.

    The truth ratio compares them.

    The true answer is the paraphrased one if the subset has it (those on the fictitious authors do). Perturbed answers
    that equal the true one or each other are left out; the authors' own code counts them.

    Args:
        subset (str, *optional*, defaults to "forget10"): As in `tofu_facts`.
        source (str, *optional*, defaults to "locuslab/TOFU"): A folder, or the id of a dataset on the Hub.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
        UnlearnError: If the subset has no perturbed answers.
    """
    rows = _rows(f"{subset}_perturbed", (f"{subset}_perturbed", subset), source, revision)
    found = []
    for row, subject in zip(rows, _authors(subset, len(rows)), strict=True):
        others = row.get("perturbed_answer")
        if not isinstance(others, list):
            raise UnlearnError(
                f"subset={subset!r}: expected perturbed answers in {source}. The truth ratio needs {subset}_perturbed."
            )
        true = row.get("paraphrased_answer") or text_of(row, "answer", source)
        options = tuple(dict.fromkeys([true, *others]))
        found.append(Choice(f"Question: {text_of(row, 'question', source)}", options, 0, subject, shown=False))
    return found


def _rows(config: str, names: tuple[str, ...], source: str, revision: str | None) -> list[dict[str, Any]]:
    files = [f"{name}.{suffix}" for name in names for suffix in ("json", "jsonl")]
    return read_rows(source, files, config, "train", revision)


def _prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _authors(subset: str, rows: int) -> list[str]:
    """The number of each row's fictitious author in the subset. Each author has 20 consecutive questions."""
    if not subset.startswith(_OF_AUTHORS) or rows % _PER_AUTHOR:
        return [""] * rows
    return [f"{subset} author {i // _PER_AUTHOR}" for i in range(rows)]
