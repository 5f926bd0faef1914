"""What an audit found, as tables, curves and JSON."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.report.files import read_report, write_report
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.evaluation.stored import read_as


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
        from sae_unlearn.evaluation.audit_tables import audit_markdown

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
        from sae_unlearn.evaluation.audit.plot import draw_audit

        return write_report(folder, NAME, self.to_dict(), self.to_markdown(), lambda path: draw_audit(self, path))

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
