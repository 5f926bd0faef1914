"""TOFU: questions about authors who do not exist (Maini et al., 2024, arXiv 2401.06121; MIT license).

Hub: `locuslab/TOFU`. In a folder: `forget10.json`, `forget10_perturbed.json` and so on, as lists or an object a line.
"""

from typing import Any

from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.choices import Choice
from sae_unlearn.evaluation.metrics.recall import Fact


HUB_ID = "locuslab/TOFU"
_PER_AUTHOR = 20
_OF_AUTHORS = ("full", "forget", "retain")


def tofu_facts(subset: str = "forget10", source: str = HUB_ID, revision: str | None = None) -> list[Fact]:
    """Questions and answers, to be answered in free words.

    Args:
        subset: `forget01`, `forget05`, `forget10`, `retain90` ..., `real_authors`, `world_facts`.
        source: a folder, or a dataset's id on the Hub.

    Raises:
        FileNotFoundError: there is none.
    """
    rows = _rows(subset, (subset, f"{subset}_perturbed"), source, revision)
    return [
        Fact(_prompt(text_of(row, "question", source)), (text_of(row, "answer", source),), subject)
        for row, subject in zip(rows, _authors(subset, len(rows)), strict=True)
    ]


def tofu_choices(subset: str = "forget10", source: str = HUB_ID, revision: str | None = None) -> list[Choice]:
    """Each question with its true answer first and the perturbed ones after it, for the truth ratio.

    The true answer is the paraphrased one where there is one (in the subsets on the fictitious authors). Perturbed
    answers that are the true one, or are there twice, are left out; the authors' own code counts them.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the subset has no perturbed answers.
    """
    rows = _rows(f"{subset}_perturbed", (f"{subset}_perturbed", subset), source, revision)
    found = []
    for row, subject in zip(rows, _authors(subset, len(rows)), strict=True):
        others = row.get("perturbed_answer")
        if not isinstance(others, list):
            raise ValueError(
                f"{subset} of {source} has no perturbed answers; the truth ratio needs {subset}_perturbed."
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
    """The fictitious authors have 20 questions each, one after the other; they are numbered in each subset."""
    if not subset.startswith(_OF_AUTHORS) or rows % _PER_AUTHOR:
        return [""] * rows
    return [f"{subset} author {i // _PER_AUTHOR}" for i in range(rows)]
