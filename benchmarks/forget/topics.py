"""Topics and other text for the benchmarks, from a local data folder.

The folder is named by `--data` or the environment variable `SAE_UNLEARN_DATA` and holds `mmlu/test/*.csv` (columns
`question, choice0..choice3, answer`) and `wikitext2/valid.txt`. A topic is an MMLU subject, a paragraph one question
with its right answer; other text is questions of other subjects and paragraphs of WikiText-2. The topics of WMDP
(`wmdp-bio`, `wmdp-cyber`, `wmdp-chem`) are read from the folder's `wmdp/`, or else from the Hub.
"""

import csv
import os
import random
from pathlib import Path
from typing import NamedTuple

from sae_unlearn.evaluation.datasets.wmdp import HUB_ID, wmdp_choices


# The demo's SAE has seen no text of the report topics; the default settings were chosen on the validation topics.
VALIDATION_TOPICS = ("high_school_psychology", "high_school_us_history", "marketing")
REPORT_TOPICS = ("nutrition", "world_religions", "astronomy")
FIT_PARAGRAPHS = 130
RELATED = {
    "nutrition": {"human_aging", "clinical_knowledge", "anatomy"},
    "wmdp-bio": {"virology", "college_biology", "high_school_biology", "medical_genetics"},
    "wmdp-cyber": {"computer_security", "college_computer_science", "high_school_computer_science"},
    "wmdp-chem": {"college_chemistry", "high_school_chemistry"},
}
"""Subjects of MMLU that are no other text, beside the topic's own: the SAE may well have one feature for both."""


class Topic(NamedTuple):
    """Texts of one experiment; `fit` texts are for fitting, `held_out` texts for reporting only."""

    name: str
    fit: list[str]
    held_out: list[str]
    other_fit: list[str]
    other_held_out: list[str]


def data_folder(given: str | None) -> Path:
    """The data folder, from the flag or the environment."""
    folder = given or os.environ.get("SAE_UNLEARN_DATA")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("Name the data folder with --data or SAE_UNLEARN_DATA.")
    return Path(folder)


def load_topic(folder: Path, name: str, held_out: int = 40, seed: int = 0) -> Topic:
    """One topic with 130 paragraphs to fit on, and as much other text."""
    shuffle = random.Random(seed).shuffle
    topic = questions(folder, name)
    shuffle(topic)
    related = {name, *RELATED.get(name, ())}
    unrelated = [subject for subject in subjects(folder) if subject not in related]
    others = [text for subject in unrelated for text in questions(folder, subject)[:60]]
    shuffle(others)
    paragraphs = _paragraphs(folder)
    shuffle(paragraphs)
    return Topic(
        name,
        topic[:FIT_PARAGRAPHS],
        topic[FIT_PARAGRAPHS : FIT_PARAGRAPHS + held_out],
        others[:200] + paragraphs[:60],
        others[200 : 200 + held_out] + paragraphs[60 : 60 + held_out // 2],
    )


def subjects(folder: Path) -> list[str]:
    """The MMLU subjects that are there."""
    return sorted(path.stem.removesuffix("_test") for path in (folder / "mmlu/test").glob("*.csv"))


def is_exam(folder: Path, name: str) -> bool:
    """Whether a topic has questions to choose answers of."""
    return name.startswith("wmdp-") or name in subjects(folder)


def questions(folder: Path, subject: str) -> list[str]:
    """The questions of a subject with their right answers, in the file's order."""
    return [as_text(question, options[right]) for question, options, right in exam(folder, subject)]


def as_text(question: str, answer: str) -> str:
    """A question and its answer as one text."""
    return f"{question}\nAnswer: {answer}"


def exam(folder: Path, subject: str) -> list[tuple[str, tuple[str, ...], int]]:
    """The questions of a subject, the options of each, and the place of the right one."""
    if subject.startswith("wmdp-"):
        source = folder / "wmdp"
        found = wmdp_choices(subject, str(source) if source.is_dir() else HUB_ID)
        return [(f"Question: {c.question}", c.options, c.right) for c in found]
    with open(folder / "mmlu/test" / f"{subject}_test.csv", encoding="utf-8", newline="") as file:
        return [
            (
                f"Question: {row['question'].strip()}",
                tuple(row[f"choice{i}"].strip() for i in range(4)),
                int(row["answer"]),
            )
            for row in csv.DictReader(file)
        ]


def _paragraphs(folder: Path) -> list[str]:
    text = (folder / "wikitext2/valid.txt").read_text(encoding="utf-8")
    text = text[int(len(text) * 0.85) :]  # the SAE was trained on the first part
    text = text.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
    found = [line.strip() for line in text.split("\n") if len(line) > 300 and not line.strip().startswith("=")]
    return [line[:600].rpartition(" ")[0] for line in found]
