"""Picture of an audit: one panel of curves for every attack."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from sae_unlearn.cards.plotting import BLUE, VERMILLION, new_canvas
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.report.figure import Figure
from sae_unlearn.files.terminal import printable


# Colors as in the picture of an evaluation; gray is the control
_LINES: tuple[tuple[str, str, str, str, Callable[[AuditRow], Figure | None]], ...] = (
    ("recall of forgotten facts", VERMILLION, "-", "o", lambda row: row.find()),
    ("recall of forgotten facts, base", "0.45", "-", "s", lambda row: row.find(base=True)),
    ("gate fires on forgotten facts", VERMILLION, ":", "^", lambda row: row.fires()),
    ("recall of other facts", BLUE, "-", "D", lambda row: row.find(side="retain")),
    ("gate fires on other facts", BLUE, ":", "v", lambda row: row.fires("retain")),
)
_AXES = {
    "dilution": "words of filler",
    "splitting": "turns",
    "spelling": "share of words",
    "direction": "multiples of the direction",
    "relearning": "steps",
    "rounding": "bits of a weight",
}
_START = {"dilution": 0.0, "splitting": 1.0, "spelling": 0.0}
"""Place of the unchanged questions on an attack's axis."""


def draw_audit(title: str, rows: Sequence[AuditRow], path: str | os.PathLike[str]) -> None:
    """Draw an audit as a PNG: curves over the strength, or points for attacks that have only variants.

    Args:
        title (str): Title of the picture.
        rows (sequence of AuditRow): The first row holds the questions as they are.
        path (str or PathLike): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed. The message names the extra.
    """
    panels = _panels(rows)
    columns = min(3, len(panels))
    height = math.ceil(len(panels) / columns)
    canvas = new_canvas(4.3 * columns, 3.1 * height + 0.9, dpi=130)
    grid = canvas.subplots(height, columns, squeeze=False).flatten()
    drawn: dict[str, Any] = {}
    for axes, (attack, variant, own) in zip(grid, panels, strict=False):
        _draw_panel(axes, attack, variant, own, drawn)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    canvas.suptitle(printable(title), fontsize=11, parse_math=False)
    canvas.legend(drawn.values(), drawn, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    canvas.savefig(os.fspath(path), format="png")


def _panels(all_rows: Sequence[AuditRow]) -> list[tuple[str, str, list[AuditRow]]]:
    """One panel for each attack that has only variants, and for each variant of an attack with strengths."""
    start = all_rows[0]
    found: dict[tuple[str, str], list[AuditRow]] = {}
    for row in all_rows[1:]:
        key = (row.attack, row.variant) if row.attack in _AXES else (row.attack, "")
        found.setdefault(key, []).append(row)
    panels = []
    for (attack, variant), rows in found.items():
        if attack in _START:
            rows = [AuditRow(attack, variant, _START[attack], start.audited, start.base), *rows]
        panels.append((attack, variant, rows))
    return panels or [("none", "", [start])]


def _draw_panel(axes: Any, attack: str, variant: str, rows: Sequence[AuditRow], drawn: dict[str, Any]) -> None:
    curve = attack in _AXES
    rows = sorted(rows, key=lambda row: row.strength)
    for number, (label, colour, style, mark, read) in enumerate(_LINES):
        # shifted, so that no interval hides another
        points = [(x + 0.07 * (number - 2), found) for x, row in enumerate(rows) if (found := read(row)) is not None]
        if not points:
            continue
        xs, values = [x for x, _ in points], [figure.estimate.value for _, figure in points]
        line = axes.plot(xs, values, mark, linestyle=style if curve else "", color=colour, markersize=4, linewidth=1.4)
        for x, figure in points:
            _whisker(axes, x, figure, colour)
        drawn.setdefault(label, line[0])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_title(printable(": ".join(part for part in (attack, variant) if part)), fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    names = [f"{row.strength:g}" if curve else printable(row.variant or attack) for row in rows]
    turned = {} if curve else {"rotation": 30, "ha": "right"}
    axes.set_xticks(range(len(rows)), names, fontsize=8, **turned)
    axes.set_xlabel(_AXES.get(attack, ""), fontsize=8)
    for tick in axes.get_xticklabels():
        tick.set_parse_math(False)


def _whisker(axes: Any, x: float, figure: Figure, colour: str) -> None:
    axes.plot([x, x], [figure.estimate.low, figure.estimate.high], color=colour, linewidth=0.8, alpha=0.6)
