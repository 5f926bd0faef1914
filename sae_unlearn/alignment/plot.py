"""Picture of an alignment: known, unknown and target entities, before and after."""

import os

from sae_unlearn.alignment.metrics import Portrait
from sae_unlearn.cards.plotting import BLUE, VERMILLION, new_canvas


PICTURE = "alignment.png"

# The marks also differ in shape.
_KNOWN, _UNKNOWN, _TARGET, _INK = VERMILLION, BLUE, "#000000", "#333333"


def draw_portrait(portrait: Portrait, path: str | os.PathLike[str]) -> None:
    """Draw held-out known and unknown entities, and an arrow for each target from before to after.

    Args:
        portrait (Portrait): From `SAEAlignmentTrainer.portrait`.
        path (str or PathLike): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed. The message names the extra.
    """
    figure = new_canvas(8, 5)
    axes = figure.add_subplot()
    for points, colour, mark, label in (
        (portrait.known, _KNOWN, "o", "known"),
        (portrait.unknown, _UNKNOWN, "s", "unknown"),
    ):
        axes.scatter(
            *_columns(points), c=colour, marker=mark, s=26, alpha=0.55, linewidths=0, label=_named(label, points)
        )
    axes.scatter(
        *_columns(portrait.before),
        facecolors="none",
        edgecolors=_TARGET,
        marker="^",
        s=46,
        label=_named("target before", portrait.before),
    )
    axes.scatter(*_columns(portrait.after), c=_TARGET, marker="^", s=46, label=_named("target after", portrait.after))
    for start, end in zip(portrait.before, portrait.after, strict=True):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": _INK, "alpha": 0.45, "linewidth": 0.8})
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("latents of known entities (mean, in standard deviations of the unknown)")
    axes.set_ylabel("latents of unknown entities (same)")
    axes.set_title("Entities in the SAE's latent space, in held-out templates", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(os.fspath(path), format="png")


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _named(label: str, points: list[tuple[float, float]]) -> str:
    return f"{label} (n={len(points)})"
