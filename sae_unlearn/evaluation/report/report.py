"""What an evaluation found, as tables, a picture and JSON."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure, Unit
from sae_unlearn.evaluation.report.files import read_as, read_report, write_report
from sae_unlearn.evaluation.report.plot import draw_figures
from sae_unlearn.files.terminal import printable


NAME = "report"


@dataclass(frozen=True)
class Report:
    """The figures of one model.

    Attributes:
        title: what was measured.
        figures: in the order in which they were measured.
        about: the model and the settings, as plain values.
        notes: what a reader has to know, such as a metric that was left out and why.
    """

    title: str
    figures: tuple[Figure, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def find(self, metric: str, side: str, data: str | None = None) -> Figure:
        """The figure of a metric on one side; `data` names the set where there are several.

        Raises:
            KeyError: there is none, or more than one.
        """
        found = [f for f in self.figures if f.metric == metric and f.side == side and data in (None, f.data)]
        if len(found) != 1:
            there = ", ".join("/".join(f.key) for f in self.figures)
            raise KeyError(f"{len(found)} figures of {metric!r} on {side!r} (data={data!r}); there are: {there}")
        return found[0]

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [self.to_card().rstrip("\n")]
        if self.about:
            lines += ["", *markdown_table(["setting", "value"], [[k, str(v)] for k, v in self.about.items()])]
        return "\n".join(lines) + "\n"

    def to_card(self) -> str:
        """Return the part that a card shows: the figures and the notes, without the settings."""
        lines = [f"# {cell(self.title)}", ""]
        rows = [
            [f.side, f.data, f.title, shown(f.estimate.value, f.unit), shown_interval(f.estimate, f.unit), f.estimate.n]
            for f in self.figures
        ]
        lines += markdown_table(["side", "data", "measure", "value", "95 % interval", "n"], rows)
        if self.notes:
            lines += ["", *(f"- {cell(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold; the values of all rows are in it, no text is."""
        return {
            "title": self.title,
            "about": dict(self.about),
            "notes": list(self.notes),
            "figures": [found.to_dict() for found in self.figures],
        }

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `report.json`, `report.md`, and with matplotlib `report.png`; returns what was written."""
        return write_report(folder, NAME, self.to_dict(), self.to_markdown(), lambda path: draw_reports([self], path))

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> "Report":
        """A report that was saved: its folder or its JSON file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not one.
        """
        return read_report(source, NAME, "an evaluation", cls.from_dict)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Report":
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else, naming what is wrong.
        """
        with read_as("evaluation"):
            title, about, notes, figures = (stored[name] for name in ("title", "about", "notes", "figures"))
            figures = tuple(Figure.from_dict(one) for one in figures)
            return cls(str(title), figures, dict(about), tuple(map(str, notes)))


def shown(value: float, unit: Unit, signed: bool = False) -> str:
    """A number in its unit, as it is printed."""
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign}.3g}" if unit in ("perplexity", "ratio", "p") else f"{value:{sign}.3f}"


def shown_interval(estimate: Estimate, unit: Unit, signed: bool = False) -> str:
    """An interval in its unit, as it is printed."""
    return f"{shown(estimate.low, unit, signed)} to {shown(estimate.high, unit, signed)}"


def markdown_table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    return printable(value).replace("|", "\\|").replace("<", "&lt;")


def draw_reports(reports: Sequence[Report], path: str | os.PathLike[str]) -> None:
    """Draw one or more reports side by side as a PNG: a panel for each unit, a line for each figure.

    Raises:
        ImportError: matplotlib is not installed; names the extra.
        ValueError: the reports hold no figures.
    """
    draw_figures([(report.title, report.figures) for report in reports], path)
