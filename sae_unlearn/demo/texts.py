"""The texts of the demo, which lie in the folder `texts` beside this file."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sae_unlearn.checks import check_counts
from sae_unlearn.evaluation import Fact


SIDES = ("forget", "retain")


@dataclass(frozen=True)
class DemoTexts:
    """What the demo fits on, and what it reports on and never fits on.

    Attributes:
        forget, retain: paragraphs to fit on.
        heldout: further paragraphs, by side ("forget" or "retain").
        facts: facts to be recalled, by side.
        prompts: sentence beginnings to be continued, by side.
    """

    forget: list[str]
    retain: list[str]
    heldout: dict[str, list[str]]
    facts: dict[str, list[Fact]]
    prompts: dict[str, list[str]]

    def reduced(self, heldout: int, facts: int, prompts: int) -> "DemoTexts":
        """The same with at most so many of each per side for the report, evenly drawn; the fit keeps all its text.

        Raises:
            UnlearnError: a number below 1.
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
    """The texts that the package ships: human biology to forget, everything else to keep."""
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
