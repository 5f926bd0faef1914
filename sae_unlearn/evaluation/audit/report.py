"""What an audit found, as tables, curves and JSON.

The tables of an audit, in Markdown.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_unlearn.evaluation.audit.plot import draw_audit
from sae_unlearn.evaluation.audit.registry import BLACK_BOX
from sae_unlearn.evaluation.audit.row import RECALL, AuditRow, any_of
from sae_unlearn.evaluation.report.comparison import compare
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure
from sae_unlearn.evaluation.report.files import read_as, read_report, write_report
from sae_unlearn.evaluation.report.report import Report, cell, markdown_table


NAME = "audit"


@dataclass(frozen=True)
class AuditReport:
    """The rows of one audit.

    Attributes:
        title: what was audited.
        rows: the first one is of the questions as they are.
        budgets: what each attack may use, by its name.
        neighbours: `evaluate` on harmless rows near the topic ("near") and on others ("far"); None if not measured.
        neighbours_base: the same without the adapters; None where there is no such model.
        about: the model and the settings, as plain values.
        notes: what a reader has to know, such as an attack that was left out and why.
    """

    title: str
    rows: tuple[AuditRow, ...]
    budgets: Mapping[str, str] = field(default_factory=dict)
    neighbours: Report | None = None
    neighbours_base: Report | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def find(self, attack: str, variant: str | None = None, strength: float | None = None) -> AuditRow:
        """The row of an attack; `variant` and `strength` name it where there are several.

        Raises:
            KeyError: there is none, or more than one.
        """
        found = [
            row
            for row in self.rows
            if row.attack == attack and variant in (None, row.variant) and strength in (None, row.strength)
        ]
        if len(found) != 1:
            there = ", ".join(f"{row.attack}/{row.variant}/{row.strength:g}" for row in self.rows)
            raise KeyError(f"{len(found)} rows of {attack!r} ({variant=}, {strength=}); there are: {there}")
        return found[0]

    def to_markdown(self) -> str:
        """The audit as Markdown."""

        return audit_markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold; the values of all rows are in it, no text is."""
        reports = {
            name: None if getattr(self, name) is None else getattr(self, name).to_dict()
            for name in ("neighbours", "neighbours_base")
        }
        return {
            "title": self.title,
            "about": dict(self.about),
            "notes": list(self.notes),
            "budgets": dict(self.budgets),
            "rows": [row.to_dict() for row in self.rows],
            **reports,
        }

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `audit.json`, `audit.md`, and with matplotlib `audit.png`; returns what was written."""
        return write_report(
            folder, NAME, self.to_dict(), self.to_markdown(), lambda path: draw_audit(self.title, self.rows, path)
        )

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> "AuditReport":
        """An audit that was saved: its folder or its JSON file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not one.
        """
        return read_report(source, NAME, "an audit", cls.from_dict)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "AuditReport":
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else, naming what is wrong.
        """
        with read_as("audit"):
            reports = {
                name: None if stored[name] is None else Report.from_dict(stored[name])
                for name in ("neighbours", "neighbours_base")
            }
            return cls(
                title=str(stored["title"]),
                rows=tuple(AuditRow.from_dict(row) for row in stored["rows"]),
                budgets={str(name): str(text) for name, text in stored["budgets"].items()},
                about=dict(stored["about"]),
                notes=tuple(map(str, stored["notes"])),
                **reports,
            )


STRENGTHS = {
    "dilution": "{:g} words",
    "splitting": "{:g} turns",
    "spelling": "{:g} of the words",
    "direction": "{:g} times",
    "relearning": "{:g} steps",
    "rounding": "{:g} bits",
}
"""How the strength of an attack is told; of the others it is a number only."""

_HEAD = """Recall is the share of questions whose greedy completion begins with an accepted answer. 95 % intervals in
brackets; those of changes are paired with the questions as they are (of "direction" and "relearning": with strength 0).
"Base" is the same attack on the model without its adapters: what it does not know there, no adapter has hidden. What is
said of other facts should be as without the attack."""

BEST = "For someone who makes every try, the plain question included, and knows which one was right."


def audit_markdown(report: AuditReport) -> str:
    """All tables."""
    lines = [f"# {cell(report.title)}", "", *_HEAD.splitlines(), "", *attack_table(report)]
    lines += ["", "## With the best of all tries", "", BEST, "", *best_table(report)]
    if report.neighbours is not None:
        lines += ["", "## Harmless rows near the topic", "", *neighbour_table(report)]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {cell(note)}" for note in report.notes)]
    if report.budgets:
        lines += [
            "",
            "## Budgets",
            "",
            *markdown_table(["attack", "budget"], [[*each] for each in report.budgets.items()]),
        ]
    if report.about:
        lines += ["", *markdown_table(["setting", "value"], [[k, str(v)] for k, v in report.about.items()])]
    return "\n".join(lines) + "\n"


def attack_table(report: AuditReport) -> list[str]:
    """A row for every attack at every strength; columns that would be empty are left out."""
    rows = [
        {
            "attack": row.attack + (" (control)" if row.control else ""),
            "": row_name(row),
            "recall of forgotten facts": figure_text(row.find()),
            "change by the attack": change_text(row.change),
            "base": figure_text(row.find(base=True)),
            "gate fires": figure_text(row.fires()),
            "recall of other facts": figure_text(row.find(side="retain")),
            "base, other facts": figure_text(row.find(side="retain", base=True)),
            "gate fires, other facts": figure_text(row.fires("retain")),
            "n": row_number(row),
        }
        for row in report.rows
    ]
    head = [name for name in rows[0] if name in ("attack", "", "n") or any(row[name] for row in rows)]
    return markdown_table(head, [[row[name] for name in head] for row in rows])


def best_table(report: AuditReport) -> list[str]:
    """Recall by the best of all tries of an attack: the worst case."""
    start = report.rows[0]
    rows = []
    used = [name for name in BLACK_BOX if any(row.attack == name for row in report.rows)]
    for name in [*used, "all of these"] if len(used) > 1 else used:
        chosen = [start, *(row for row in report.rows if row.attack in ((name,) if name in used else used))]
        found = [best(chosen, side, base) for side in ("forget", "retain") for base in (False, True)]
        rows.append([name, len(chosen), *map(figure_text, found), row_number(start)])
    head = ["attack", "tries", "recall of forgotten facts", "base", "recall of other facts", "base, other facts", "n"]
    return markdown_table(head, rows)


def best(rows: list[AuditRow], side: str = "forget", base: bool = False) -> Figure | None:
    """The share of facts that at least one of the rows recalls."""
    found = [figure for row in rows if (figure := row.find(RECALL, side, base)) is not None]
    return any_of(RECALL, found) if found else None


def neighbour_table(report: AuditReport) -> list[str]:
    """What became of harmless rows: of those near the topic, and of others to compare them with."""
    if report.neighbours is None:
        return []
    base = report.neighbours_base
    shown = report.neighbours if base is None else compare(base, report.neighbours)
    return shown.to_markdown().splitlines()[2:]


def row_name(row: AuditRow) -> str:
    """Variant and strength of a row in words."""
    strength = STRENGTHS.get(row.attack, "").format(row.strength)
    return ", ".join(part for part in (row.variant, strength) if part)


def row_number(row: AuditRow) -> int:
    """Over how many independent facts the recall of a row is."""
    found = row.find() or row.find(base=True)
    return 0 if found is None else found.estimate.n


def figure_text(figure: Figure | None) -> str:
    """A share with its interval, in per cent; nothing where there is none."""
    return "" if figure is None else _per_cent(figure.estimate)


def change_text(change: Estimate | None) -> str:
    """A change of a share with its interval; nothing where there is none."""
    return "" if change is None else _per_cent(change, "+")


def _per_cent(found: Estimate, sign: str = "") -> str:
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (found.value, found.low, found.high))
    return f"{value} % ({low} to {high})"
