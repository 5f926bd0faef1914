"""Picture of a guardrail's trade-off: recall on the topic against false alarms, over all thresholds."""

import os
from pathlib import Path
from typing import Any

from sae_unlearn.cards.plotting import BLUE, VERMILLION, new_canvas
from sae_unlearn.checks import reals
from sae_unlearn.guardrail.tuning.trade_off import TradeOff


def curve(calibration: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Return threshold, recall and false alarms at each threshold between held-out rows, highest first."""
    forget, retain = (reals(calibration.get(f"statistic_{role}")) for role in ("forget", "retain"))
    points = []
    for threshold in [*sorted({*forget, *retain}, reverse=True), float("-inf")]:
        hits = (sum(value > threshold for value in rows) / len(rows) for rows in (forget, retain))
        points.append((threshold, *hits))
    return points  # type: ignore[return-value]  # two hits


def draw_trade_off(
    calibration: dict[str, Any], path: str | os.PathLike[str], before: TradeOff, after: TradeOff | None = None
) -> Path:
    """Draw the curve with the present threshold and the chosen one, as a PNG.

    Raises:
        ImportError: If matplotlib is not installed; names the extra.
    """
    points = curve(calibration)
    figure = new_canvas(6, 4.6)
    axes = figure.add_subplot()
    axes.step([p[2] for p in points], [p[1] for p in points], where="post", color=BLUE, linewidth=2)
    for each, marker, label in ((before, "o", "now"), (after, "D", "chosen")):
        if each is not None:
            place = (each.false_alarms["rate"], each.recall["rate"])
            axes.plot(
                *place, marker, color=VERMILLION, markersize=9, markerfacecolor="white" if marker == "o" else None
            )
            axes.annotate(
                f"{label}: threshold {each.threshold:.3g}\n{place[1]:.0%} of the topic, {place[0]:.1%} of other text",
                place,
                xytext=(12, -6 if marker == "o" else -34),
                textcoords="offset points",
                va="top",
                fontsize=9,
            )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("share of other rows on which it fires (false alarms)")
    axes.set_ylabel("share of topic rows on which it fires (recall)")
    axes.set_title("Trade-off of the threshold, on held-out rows", fontsize=12, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(os.fspath(path), format="png")
    return Path(path)
