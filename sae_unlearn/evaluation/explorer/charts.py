"""Charts of a guardrail's page. Forget and retain text have one color each throughout."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from sae_unlearn.evaluation.explorer.svg import Frame, drawing, ticks
from sae_unlearn.evaluation.explorer.sweep import SweepPoint
from sae_unlearn.guardrail.storage.calibration_plot import bin_counts, bin_edges
from sae_unlearn.guardrail.summary import ROLES


def distribution(statistics: Mapping[str, Sequence[float]], threshold: float, words: str) -> Markup:
    """Return the histogram of rows by their statistic, with the threshold.

    Forget rows point upwards, retain rows downwards.

    Args:
        statistics (mapping): Statistics of the rows by role.
        threshold (float): The gate's threshold.
        words (str): Name of the statistic.
    """
    high = _highest(statistics, threshold)
    edges = bin_edges(threshold, high)
    counts = {role: bin_counts(list(rows), edges) for role, rows in statistics.items() if rows}
    shares = {role: [n / len(statistics[role]) for n in found] for role, found in counts.items()}
    reach = 1.08 * max(max(found) for found in shares.values())
    frame = Frame(0.0, high, -reach if "retain" in shares else 0.0, reach if "forget" in shares else 0.0)
    parts = [
        frame.box((threshold, high), (frame.y_low, frame.y_high), "fires"),
        frame.axes(ticks(0.0, high), _shares(frame.y_low, frame.y_high), "statistic"),
    ]
    for role, found in shares.items():
        sign = 1 if role == "forget" else -1
        for (left, right), share, n in zip(pairwise(edges), found, counts[role], strict=True):
            if n:
                title = f"{left:.3g} to {right:.3g}: {n} of {len(statistics[role])} {role} rows"
                parts.append(frame.box((left, right), (0, sign * share), f"bar {role}", title))
    parts += [frame.rule(0), frame.mark(threshold, f"threshold {threshold:.3g}, fires above")]
    above = ", ".join(f"{_above(rows, threshold)} of {len(rows)} {role} rows" for role, rows in statistics.items())
    return drawing(parts, f"Rows by {words}; above the threshold {threshold:.3g} are {above}")


def fire_rates(statistics: Mapping[str, Sequence[float]], threshold: float) -> Markup:
    """Return the curve of the share of rows on which the gate fires, over the threshold."""
    high = _highest(statistics, threshold)
    frame = Frame(0.0, high, 0.0, 1.0)
    parts = [frame.axes(ticks(0.0, high), _shares(0.0, 1.0), "threshold")]
    for role, rows in statistics.items():
        if rows:
            at = [0.0, *sorted({row for row in rows if 0 < row < high}), high]
            shares = [_above(rows, value) / len(rows) for value in at[:-1]]
            steps = [(x, share) for ends, share in zip(pairwise(at), shares, strict=True) for x in ends]
            parts.append(frame.line(steps, role))
    parts.append(frame.mark(threshold, f"threshold {threshold:.3g}"))
    return drawing(parts, "Share of rows on which the gate fires, over the threshold")


def dose_curve(points: Sequence[SweepPoint]) -> Markup:
    """Return the curve of the change of the loss over the dose, in multiples of the guardrail's own."""
    low, high = _range(points)
    frame = Frame(-0.4, len(points) - 0.6, low, high)
    names = [(float(place), f"{point.setting:g}×") for place, point in enumerate(points)]
    parts = [frame.axes(names, ticks(low, high), "dose, in multiples of the guardrail's own"), frame.rule(0)]
    own = next((place for place, point in enumerate(points) if point.setting == 1), None)
    if own is not None:
        parts.append(frame.mark(own, "as it is"))
    for number, role in enumerate(ROLES):
        places = [(place + 0.1 * (number - 0.5), point) for place, point in enumerate(points) if role in point.change]
        parts.append(frame.line([(x, point.change[role].value) for x, point in places], role))
        for x, point in places:
            found = point.change[role]
            parts.append(frame.whisker(x, found.low, found.high, role))
            parts.append(frame.dot(x, found.value, role, f"{point.setting:g} times the dose, {role}: {found}"))
    return drawing(parts, "Change of the loss over the dose")


def threshold_curve(points: Sequence[SweepPoint], threshold: float) -> Markup:
    """Return the curve of the change of the loss over the threshold."""
    low, high = _range(points)
    last = max(point.setting for point in points) or 1.0
    frame = Frame(0.0, last, low, high)
    parts = [frame.axes(ticks(0.0, last), ticks(low, high), "threshold"), frame.rule(0)]
    for role in ROLES:
        found = [(point.setting, point.change[role]) for point in points if role in point.change]
        if found:
            parts.append(frame.band([(x, change.low, change.high) for x, change in found], role))
            parts.append(frame.line([(x, change.value) for x, change in found], role))
    parts.append(frame.mark(threshold, f"threshold {threshold:.3g}"))
    return drawing(parts, "Change of the loss over the threshold")


def _highest(statistics: Mapping[str, Sequence[float]], threshold: float) -> float:
    values = [value for rows in statistics.values() for value in rows]
    return max(1.0, math.ceil(max([threshold, *values]) * 10) / 10)


def _shares(low: float, high: float) -> list[tuple[float, str]]:
    return [(value, f"{round(abs(value) * 100, 4):g} %") for value, _ in ticks(low, high)]


def _above(rows: Sequence[float], threshold: float) -> int:
    return sum(row > threshold for row in rows)


def _range(points: Sequence[SweepPoint]) -> tuple[float, float]:
    """The range of the intervals of all points and 0, with a margin."""
    ends = [end for point in points for found in point.change.values() for end in (found.low, found.high)]
    ends = [end for end in ends if math.isfinite(end)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (high - low) or 0.5
    return low - (room if low < 0 else 0.0), high + room
