"""Picture of reports: every figure with its interval, in one color for each side."""

import math
import os
from collections.abc import Sequence
from typing import Any

from sae_unlearn.cards.plotting import BLUE, VERMILLION, new_canvas
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.figure import Figure
from sae_unlearn.files.terminal import printable


_COLORS = {"forget": VERMILLION, "retain": BLUE}
_MARKS = "os^Dv"
_PANELS = (("share", "score"), ("p",), ("nats",), ("perplexity",), ("ratio",))
_LABELS = ("share, or score", "p", "nats per token", "perplexity", "ratio (logarithmic)")


def draw_figures(reports: Sequence[tuple[str, Sequence[Figure]]], path: str | os.PathLike[str]) -> None:
    """Draw the figures of one or more reports as a PNG: a panel for each unit, a line for each figure.

    Args:
        reports (sequence): Title and figures of each report.
        path (str or PathLike): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed. The message names the extra.
        UnlearnError: If the reports have no figures.
    """
    keys = sorted(dict.fromkeys(figure.key for _, figures in reports for figure in figures), key=lambda key: key[0])
    known = [{figure.key: figure for figure in figures} for _, figures in reports]
    first = {key: next(figures[key] for figures in known if key in figures) for key in keys}
    panels = [
        (label, [key for key in keys if first[key].unit in units])
        for units, label in zip(_PANELS, _LABELS, strict=True)
    ]
    panels = [(label, lines) for label, lines in panels if lines]
    if not panels:
        raise UnlearnError("reports: expected at least one figure to draw.")
    heights = [len(lines) + 1.4 for _, lines in panels]
    canvas = new_canvas(9, 0.9 + 0.3 * sum(heights) + 0.4 * len(panels))
    all_axes = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, lines) in zip(all_axes, panels, strict=True):
        for number, figures in enumerate(known):
            for line, key in enumerate(lines):
                if key in figures:
                    _point(axes, figures[key], line + 0.5 * (number + 0.5) / len(known) - 0.25, _MARKS[number % 5])
        axes.set_yticks(range(len(lines)), [f"{key[0]}, {key[1]}: {first[key].title}" for key in lines], fontsize=8)
        for tick, key in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_color(_COLORS.get(key[0], "black"))
            tick.set_parse_math(False)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if label.startswith("share"):
            axes.set_xlim(-0.02, 1.02)
        elif label.startswith("ratio"):
            axes.set_xscale("log")
    handles = [all_axes[0].plot([], [], _MARKS[i % 5], color="0.3")[0] for i in range(len(reports))]
    titles = [printable(title) for title, _ in reports]
    canvas.legend(handles, titles, loc="outside upper left", frameon=False, fontsize=9, ncols=min(3, len(reports)))
    for text in canvas.legends[0].get_texts():
        text.set_parse_math(False)
    canvas.savefig(os.fspath(path), format="png")


def _point(axes: Any, figure: Figure, height: float, mark: str) -> None:
    value, low, high = figure.estimate.value, figure.estimate.low, figure.estimate.high
    if not all(map(math.isfinite, (value, low, high))):
        return
    colour = _COLORS.get(figure.side, "black")
    axes.plot([low, high], [height, height], color=colour, linewidth=1.6)
    axes.plot([value], [height], mark, color=colour, markersize=5)
