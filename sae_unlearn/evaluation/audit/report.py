"""The report of an audit, as rows, Markdown, a summary for a card, JSON and a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.audit.plot import draw_audit
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.audit.tables import (
    NOT_ANSWERED,
    attack_table,
    best_table,
    headline,
    neighbor_table,
    worst_neighbors,
    worst_table,
)
from sae_unlearn.evaluation.report.files import StoredReport, read_as
from sae_unlearn.evaluation.report.report import Report, cell, markdown_table


_RECALL = "Recall is the share of questions whose greedy completion begins with an accepted answer, with 95 % interval."
_HEAD = f"""{_RECALL}
A change is paired with the questions as they are ("direction" and "relearning": with strength 0). "Base" is the same
attack on the model without its adapters. Recall of other facts should not depend on the attack.
{NOT_ANSWERED} The base itself cannot answer this form of the question: the row shows nothing about the adapter."""

_SUMMARY_HEAD = f"""For each attack, the form that recalls most, among those that the base itself can answer.
{_RECALL}
"Base" is the same attack on the model without its adapters."""

_BEST = "For an attacker who makes every try, the plain question included, and knows which answer was right."


@dataclass(frozen=True)
class AuditReport(StoredReport):
    """The rows of one audit, with budgets, controls and notes.

    Attributes:
        title (str): Name of the report.
        rows (tuple of AuditRow): The first row holds the questions as they are.
        budgets (mapping, *optional*, defaults to {}): What an attacker may see and do, by the attack's name.
        neighbors (Report, *optional*): `evaluate` on harmless rows near the topic ("near") and on others ("far"). None
            if not measured.
        neighbors_base (Report, *optional*): The same without the adapters. None without adapters.
        about (mapping, *optional*, defaults to {}): The model and the settings, as plain values.
        notes (tuple of str, *optional*, defaults to ()): Remarks for readers, such as an attack that was skipped.
    """

    stem = "audit"
    about_what = "an audit"

    title: str
    rows: tuple[AuditRow, ...]
    budgets: Mapping[str, str] = field(default_factory=dict)
    neighbors: Report | None = None
    neighbors_base: Report | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def find(self, attack: str, variant: str | None = None, strength: float | None = None) -> AuditRow:
        """Return the row of an attack.

        Args:
            attack (str): Name of the attack.
            variant (str, *optional*): Needed if the attack has several variants.
            strength (float, *optional*): Needed if it has several strengths.

        Raises:
            UnlearnError: If no row matches, or more than one.
        """
        found = [
            row
            for row in self.rows
            if row.attack == attack and variant in (None, row.variant) and strength in (None, row.strength)
        ]
        if len(found) != 1:
            there = ", ".join(f"{row.attack}/{row.variant}/{row.strength:g}" for row in self.rows)
            raise UnlearnError(f"{attack=}, {variant=}, {strength=}: expected one row, got {len(found)}. Rows: {there}")
        return found[0]

    def to_markdown(self) -> str:
        """Return all tables as Markdown."""
        lines = [f"# {cell(self.title)}", "", *_HEAD.splitlines(), "", *attack_table(self.rows)]
        lines += ["", "## With the best of all tries", "", _BEST, "", *best_table(self.rows)]
        if self.neighbors is not None:
            table = neighbor_table(self.neighbors, self.neighbors_base)
            lines += ["", "## Harmless rows near the topic", "", *table]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {cell(note)}" for note in self.notes)]
        if self.budgets:
            table = markdown_table(["attack", "budget"], [[*each] for each in self.budgets.items()])
            lines += ["", "## Budgets", "", *table]
        if self.about:
            lines += ["", *markdown_table(["setting", "value"], [[k, str(v)] for k, v in self.about.items()])]
        return "\n".join(lines) + "\n"

    def to_card(self) -> str:
        """Return the summary for a card: one line, and folded the worst form of each attack and harmless rows."""
        lines = [f"# {cell(self.title)}", "", headline(self.rows), ""]
        lines += ["<details>", "<summary>The worst form of each attack, and harmless rows near the topic</summary>", ""]
        lines += [*_SUMMARY_HEAD.splitlines(), "", *worst_table(self.rows)]
        left_out = sum(not row.answerable for row in self.rows)
        if left_out:
            lines += ["", f"Left out: {left_out} of {len(self.rows)} rows, whose form the base cannot answer."]
        near = [] if self.neighbors is None else worst_neighbors(self.neighbors)
        if near:
            lines += ["", "Harmless rows near the topic, the worst set:", "", *near]
        return "\n".join([*lines, "", "</details>"]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a mapping that JSON can hold, with the values of all rows and without texts."""
        reports = {
            name: None if getattr(self, name) is None else getattr(self, name).to_dict()
            for name in ("neighbors", "neighbors_base")
        }
        return {
            "title": self.title,
            "about": dict(self.about),
            "notes": list(self.notes),
            "budgets": dict(self.budgets),
            "rows": [row.to_dict() for row in self.rows],
            **reports,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "AuditReport":
        """Return the report from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing, unknown or of another type; the message names it.
        """
        with read_as("audit"):
            reports = {
                name: None if stored[name] is None else Report.from_dict(stored[name])
                for name in ("neighbors", "neighbors_base")
            }
            return cls(
                title=str(stored["title"]),
                rows=tuple(AuditRow.from_dict(row) for row in stored["rows"]),
                budgets={str(name): str(text) for name, text in stored["budgets"].items()},
                about=dict(stored["about"]),
                notes=tuple(map(str, stored["notes"])),
                **reports,
            )

    def _draw(self, path: Path) -> None:
        draw_audit(self.title, self.rows, path)
