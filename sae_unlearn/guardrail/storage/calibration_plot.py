"""Picture of a calibration: the statistic on forget and retain rows, and the threshold."""

import math
import os
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sae_unlearn.cards.plotting import BLUE, VERMILLION, new_canvas
from sae_unlearn.checks import real, reals
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.summary import ROLES


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FORGET, _RETAIN, _INK = VERMILLION, BLUE, "#333333"
_BINS = 24


def draw_calibration(calibration: dict[str, Any], path: str | os.PathLike[str], words: str) -> None:
    """Draw the held-out rows' statistics as a PNG, forget rows upwards and retain rows downwards.

    Args:
        calibration (dict[str, Any]): `config.calibration` of a fitted guardrail.
        path (str or PathLike): The file to save.
        words (str): Description of the statistic.

    Raises:
        GuardrailError: If nothing was measured (features and threshold were set by hand).
        ImportError: If matplotlib is not installed. The error names the extra.
    """
    statistics = {role: reals(calibration.get(f"statistic_{role}")) for role in ROLES}
    threshold = real(calibration.get("threshold"))
    if not any(statistics.values()) or threshold is None:
        raise GuardrailError("calibration: expected statistics of rows, got none. Fit the guardrail on text.")
    figure = new_canvas(8, 4.6)
    axes = figure.add_subplot()
    values = [value for rows in statistics.values() for value in rows] + [threshold]
    high = max(1.0, math.ceil(max(values) * 10) / 10)
    edges = bin_edges(threshold, high)
    highest = max(
        _bars(axes, statistics["forget"], edges, 1, _FORGET, ""),
        _bars(axes, statistics["retain"], edges, -1, _RETAIN, "///"),
    )
    reach = 1.45 * highest  # room above and below the bars for the labels
    axes.set_xlim(0, high)
    axes.set_ylim(-reach, reach)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.axvspan(threshold, high, 0.1, 0.9, color="0.5", alpha=0.12, linewidth=0)
    axes.axvline(threshold, 0.1, 0.9, color=_INK, linestyle="--", linewidth=1.6)
    right = threshold < 0.8 * high
    axes.annotate(
        f"threshold {threshold:.3g}\nthe gate fires above it",
        (threshold, -reach * 0.78),
        xytext=(6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom",
        fontsize=9,
        color=_INK,
    )
    for role, sign, colour in (("forget", 1, _FORGET), ("retain", -1, _RETAIN)):
        rows = statistics[role]
        fired = sum(value > threshold for value in rows)
        axes.text(
            0.006 * high,
            sign * reach * 0.97,
            f"{role} text: fires on {fired} of {len(rows)} rows" + (f" ({fired / len(rows):.0%})" if rows else ""),
            color=colour,
            fontsize=11,
            fontweight="bold",
            ha="left",
            va="top" if sign > 0 else "bottom",
        )
    axes.yaxis.set_major_formatter(lambda share, _: f"{abs(share):.0%}")
    axes.set_ylabel("share of rows")
    axes.set_xlabel(words)
    auroc = real(calibration.get("auroc"))
    parted = "" if auroc is None else f"   (AUROC {auroc:.3f})"
    axes.set_title(f"Gate's statistic on rows held out from fitting{parted}", fontsize=12, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(os.fspath(path), format="png")


def bin_edges(threshold: float, high: float) -> list[float]:
    """Return borders of bins from 0 to `high`. The threshold is one, so no bar crosses it."""
    if not 0 < threshold < high:
        return [i * high / _BINS for i in range(_BINS + 1)]
    below = min(max(round(_BINS * threshold / high), 1), _BINS - 1)
    above = _BINS - below
    return [i * threshold / below for i in range(below)] + [
        threshold + i * (high - threshold) / above for i in range(above + 1)
    ]


def bin_counts(rows: list[float], edges: list[float]) -> list[int]:
    """Return the number of `rows` in each bin. A bin includes its upper border: the gate fires above it."""
    counts = [0] * (len(edges) - 1)
    for value in rows:
        counts[min(max(bisect_left(edges, value) - 1, 0), len(counts) - 1)] += 1
    return counts


def _bars(axes: "Axes", rows: list[float], edges: list[float], sign: int, colour: str, hatch: str) -> float:
    """Draw one histogram of shares, and return its highest bar."""
    if not rows:
        return 0.05
    shares = [sign * count / len(rows) for count in bin_counts(rows, edges)]
    axes.bar(
        edges[:-1],
        shares,
        width=[right - left for left, right in pairwise(edges)],
        align="edge",
        color=colour,
        alpha=0.75,
        edgecolor="white",
        linewidth=0.6,
        hatch=hatch,
    )
    return max(map(abs, shares))
