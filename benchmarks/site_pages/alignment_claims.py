"""Claims of the alignment paper's abstract, each with the rule of `benchmarks/alignment/pooled_plan.md`."""

from .alignment_pooled import recipes
from .markdown_text import number, table


RECIPE = "closed_form"
KEPT, MARGIN = 0.03, 0.10
HOLDS, NOT, CANNOT = "holds", "**does not hold**", "cannot be tested"


def claims() -> list[tuple[str, str, str]]:
    """Return claim, measured figures and verdict."""
    ours, base = recipes()[RECIPE], recipes()["base"]
    probe, floor = (ours[f"probe {part}"]["value"] for part in ("targets", "floor"))
    picked, before = ours["targets unseen"], base["targets unseen"]["value"]
    others = {
        name: ours[key]["value"] - base[key]["value"]
        for name, key in (
            ("other cities", "others unseen"),
            ("unrelated facts", "unrelated, relation held"),
            ("of other relations", "unrelated, relation not held"),
        )
    }
    near = ours["near"]["value"] - base["near"]["value"]
    spread, damage = ours["variance_ratio"], ours["damage"]
    return [
        (
            "activations at targets' names are those of unknown entities",
            f"refitted probe {number(probe)}, floor {number(floor)}",
            _ruled(probe <= floor + MARGIN),
        ),
        (
            "less of the targets is recalled",
            f"picked {number(picked['value'])}, base {number(before)}",
            _ruled(picked["high"] < before / 2),
        ),
        (
            "knowledge of other things is kept",
            ", ".join(f"{name} {number(change, sign=True)}" for name, change in others.items()),
            _ruled(min(others.values()) >= -KEPT),
        ),
        ("knowledge of near things is kept", f"near facts {number(near, sign=True)}", _ruled(near >= -KEPT)),
        (
            "no collapse",
            f"spread {number(spread)} of the unknown entities', damage {number(damage, 3)}",
            _ruled(spread >= 1 / 2 and damage <= KEPT),
        ),
        ("suppression does not align activations", "–", CANNOT),
    ]


def shown() -> str:
    """The claims as a table."""
    return table(["claim", "measured", "verdict"], [list(row) for row in claims()], left=3)


def count(verdict: str) -> int:
    """Return how many claims have a verdict."""
    return sum(found == verdict for _, _, found in claims())


def verdict(claim: str) -> str:
    """Return the verdict of a claim."""
    return next(found for name, _, found in claims() if name == claim)


def _ruled(holds: bool) -> str:
    return HOLDS if holds else NOT
