"""The model, the SAE and the texts of the benchmarks of the guardrail, and the one split of the texts.

A topic is one of `topics.py` (a subject of MMLU or WMDP, with questions to choose answers of) or of `paragraphs.py`. Of
its texts

    fit         fits the guardrails and trains the baselines, both sides
    validation  chooses each method's strength: within the damage budget on other text, the one that forgets most
    test        is reported, and has no part in anything else
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.forget import topics
from benchmarks.gates import paragraphs
from sae_unlearn import SparseAutoencoder
from sae_unlearn.evaluation import Choice


VALIDATION_TOPICS = topics.VALIDATION_TOPICS
TEST_TOPICS = ("nutrition", "world_religions")
LAST_TOPIC = "astronomy"
"""Looked at once, when everything else was done. (The SAE has seen no text of this topic or of the test topics.)"""

SETS = {"validation": VALIDATION_TOPICS, "test": TEST_TOPICS, "last": (LAST_TOPIC,)}


@dataclass(frozen=True)
class Size:
    """How much is read.

    Attributes:
        fit, other_fit: texts to fit on, of the topic and other ones, at most.
        validation, other_validation: texts that choose the strength.
        test, other_test: texts that are reported.
        choices: questions of the topic, and as many of other subjects.
        max_length: tokens of a text.
    """

    fit: int = 110
    other_fit: int = 230
    validation: int = 16
    other_validation: int = 30
    test: int = 40
    other_test: int = 60
    choices: int = 40
    max_length: int = 96


QUICK = Size(fit=40, other_fit=80, validation=4, other_validation=6, test=6, other_test=8, choices=4, max_length=48)


@dataclass(frozen=True)
class Texts:
    """The texts of one experiment. `choices` is empty where the topic is no subject of MMLU."""

    name: str
    fit: list[str]
    other_fit: list[str]
    validation: list[str]
    other_validation: list[str]
    test: list[str]
    other_test: list[str]
    choices: list[Choice] = field(default_factory=list)
    other_choices: list[Choice] = field(default_factory=list)


class PlainText(NamedTuple):
    """A text as `baselines` takes it: scored whole where `answer` is empty, else the answer alone."""

    prompt: str
    answer: str = ""


@dataclass(frozen=True)
class Setting:
    """What every measurement is given."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    sae: SparseAutoencoder
    texts: Texts
    size: Size
    seed: int = 0

    @property
    def layer(self) -> int:
        """The guarded layer."""
        return self.sae.layer


def load_texts(folder: Path, name: str, size: Size, seed: int = 0) -> Texts:
    """The texts of a topic, from the data folder of `topics.py` and `paragraphs.py`."""
    is_exam = topics.is_exam(folder, name)
    load = topics.load_topic if is_exam else paragraphs.load_paragraph_topic
    topic = load(folder, name, held_out=size.test, seed=seed)
    other_fit, other_test = topic.other_fit, topic.other_held_out
    for texts in (other_fit, other_test):  # questions stand before paragraphs in them, and every part needs both
        random.Random(seed).shuffle(texts)
    found: dict[str, Any] = {"test": topic.held_out[: size.test], "other_test": other_test[: size.other_test]}
    for side, texts in (("", topic.fit), ("other_", other_fit)):
        aside = getattr(size, f"{side}validation")
        found[f"{side}validation"] = texts[-aside:]
        found[f"{side}fit"] = texts[:-aside][: getattr(size, f"{side}fit")]
    if is_exam:
        fitted = {*topic.fit, *topic.other_fit}
        found["choices"] = read_choices(folder, name, fitted, size.choices, seed)
        others = [subject for subject in topics.subjects(folder) if subject != name]
        each = -(-size.choices // len(others))
        some = [c for other in others for c in read_choices(folder, other, fitted, each, seed)]
        random.Random(seed).shuffle(some)
        found["other_choices"] = some[: size.choices]
    return Texts(name, **found)


def read_choices(folder: Path, subject: str, fitted: set[str], number: int, seed: int) -> list[Choice]:
    """Questions of a subject with their options; those of which `fitted` holds the text are left out."""
    rows = topics.exam(folder, subject)
    random.Random(seed).shuffle(rows)
    found = []
    for question, options, right in rows:
        used = topics.as_text(question, options[right]) in fitted
        if not used and len(set(options)) == 4 and all(options) and len(question) < 500:
            found.append(Choice(question, options, right, subject))
    return found[:number]
