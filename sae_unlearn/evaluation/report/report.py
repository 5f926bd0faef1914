"""The report of an evaluation, as figures, Markdown, JSON and a picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure, Unit
from sae_unlearn.evaluation.report.files import StoredReport, read_as
from sae_unlearn.evaluation.report.plot import draw_figures
from sae_unlearn.files.terminal import printable


@dataclass(frozen=True)
class Report(StoredReport):
    """The figures of one model.

    Attributes:
        title (str): Name of the report.
        figures (tuple of Figure): In the order in which they were measured.
        about (mapping, *optional*, defaults to {}): The model and the settings, as plain values.
        notes (tuple of str, *optional*, defaults to ()): Remarks for readers, such as a metric that was skipped.
    """

    stem = "report"
    about_what = "an evaluation"

    title: str
    figures: tuple[Figure, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def find(self, metric: str, side: str, data: str | None = None) -> Figure:
        """Return the figure of a metric on one side.

        Args:
            metric (str): The metric.
            side (str): "forget" or "retain".
            data (str, *optional*): Name of the set. Needed if there are several.

        Raises:
            UnlearnError: If no figure matches, or more than one.
        """
        found = [f for f in self.figures if f.metric == metric and f.side == side and data in (None, f.data)]
        if len(found) != 1:
            there = ", ".join("/".join(f.key) for f in self.figures)
            raise UnlearnError(f"{metric=}, {side=}, {data=}: expected one figure, got {len(found)}. Figures: {there}")
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
        """Return the report as a mapping that JSON can hold, with the values of all rows and without texts."""
        return {
            "title": self.title,
            "about": dict(self.about),
            "notes": list(self.notes),
            "figures": [found.to_dict() for found in self.figures],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Report":
        """Return the report from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing, unknown or of another type; the message names it.
        """
        with read_as("evaluation"):
            title, about, notes, figures = (stored[name] for name in ("title", "about", "notes", "figures"))
            figures = tuple(Figure.from_dict(one) for one in figures)
            return cls(str(title), figures, dict(about), tuple(map(str, notes)))

    def _draw(self, path: Path) -> None:
        draw_reports([self], path)


def shown(value: float, unit: Unit, signed: bool = False) -> str:
    """Return a number in its unit, as printed."""
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign}.3g}" if unit in ("perplexity", "ratio", "p") else f"{value:{sign}.3f}"


def shown_interval(estimate: Estimate, unit: Unit, signed: bool = False) -> str:
    """Return an interval in its unit, as printed."""
    return f"{shown(estimate.low, unit, signed)} to {shown(estimate.high, unit, signed)}"


def markdown_table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    return printable(value).replace("|", "\\|").replace("<", "&lt;")


def draw_reports(reports: Sequence[Report], path: str | os.PathLike[str]) -> None:
    """Draw one or more reports as a PNG: a panel for each unit, a line for each figure.

    Args:
        reports (sequence of Report): The reports.
        path (str or PathLike): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed. The message names the extra.
        UnlearnError: If the reports have no figures.
    """
    draw_figures([(report.title, report.figures) for report in reports], path)
