"""The texts of the demo, in the folder `texts` next to this file."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sae_unlearn.checks import check_counts
from sae_unlearn.evaluation import Fact


SIDES = ("forget", "retain")


@dataclass(frozen=True)
class DemoTexts:
    """Texts that the demo fits on, and others that it reports on and does not fit on.

    Attributes:
        forget (list[str]): Paragraphs of the topic to fit on.
        retain (list[str]): Other paragraphs to fit on.
        heldout (dict[str, list[str]]): Further paragraphs, by side ("forget" or "retain").
        facts (dict[str, list[Fact]]): Facts to recall, by side.
        prompts (dict[str, list[str]]): Sentence beginnings to continue, by side.
    """

    forget: list[str]
    retain: list[str]
    heldout: dict[str, list[str]]
    facts: dict[str, list[Fact]]
    prompts: dict[str, list[str]]

    def reduced(self, heldout: int, facts: int, prompts: int) -> "DemoTexts":
        """Return the texts with fewer ones for the report, evenly drawn. The fit keeps all its text.

        Args:
            heldout (int): Largest number of paragraphs a side.
            facts (int): Largest number of facts a side.
            prompts (int): Largest number of prompts a side.

        Raises:
            UnlearnError: If a number is below 1.
        """
        check_counts(heldout=heldout, facts=facts, prompts=prompts)
        return DemoTexts(
            self.forget,
            self.retain,
            {side: _evenly(rows, heldout) for side, rows in self.heldout.items()},
            {side: _evenly(rows, facts) for side, rows in self.facts.items()},
            {side: rows[:prompts] for side, rows in self.prompts.items()},
        )


def load_demo_texts() -> DemoTexts:
    """Return the texts of the package: human biology to forget, everything else to keep."""
    facts = {
        side: [Fact(fact["prompt"], tuple(fact["answers"])) for fact in rows] for side, rows in _read("facts").items()
    }
    return DemoTexts(_read("forget"), _read("retain"), _read("heldout"), facts, _read("prompts"))


def _read(name: str) -> Any:
    return json.loads((files(__package__) / "texts" / f"{name}.json").read_text(encoding="utf-8"))


def _evenly(rows: list[Any], number: int) -> list[Any]:
    if len(rows) <= number:
        return list(rows)
    return [rows[i * len(rows) // number] for i in range(number)]
