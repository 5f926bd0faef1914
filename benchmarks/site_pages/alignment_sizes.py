"""Tables of sets of 10, 50 and 200 cities, and of sets that are forgotten one after another."""

from typing import Any

from .alignment_pooled import KEPT, MEASURES, recipes, share
from .markdown_text import number, table
from .results import read_json


RESULTS, POOLED = "alignment_sizes.json", "alignment_pooled.json"


def sizes() -> dict[str, dict[str, Any]]:
    """Return the figures by number of cities: "0" is the base, "10" the sets of `alignment_pooled`."""
    found = read_json(RESULTS)["sizes"]
    return {"0": found["0"], "10": {**recipes()["closed_form"], "models": recipes()["closed_form"]["sets"]}} | found


def by_size() -> str:
    """Recall of the targets and what is kept, by number of cities in a set."""
    rows = [
        [
            "none" if size == "0" else size,
            str(one["models"]) if size != "0" else "–",
            *(share(one, name) for name in MEASURES.values()),
            number(one["damage"], 3) if size != "0" else "–",
        ]
        for size, one in sorted(sizes().items(), key=lambda pair: int(pair[0]))
    ]
    return table(["cities at once", "models", *MEASURES, "damage"], rows)


def value(size: str, name: str) -> float:
    """Return a share by number of cities."""
    return float(sizes()[size][MEASURES[name]]["value"])


def shown(size: str, name: str) -> str:
    """Return a share as prose shows it."""
    return number(value(size, name))


def cell(size: str, name: str) -> str:
    """Return a share with its interval."""
    return share(sizes()[size], MEASURES[name])


def energy(size: str) -> str:
    """Return the mean share of the solution that the LoRA's rank holds, for sets of this size."""
    cells = [cell for cell in read_json(POOLED)["cells"] if cell["recipe"] == "closed_form"]
    if size != "10":
        cells = [cell for cell in read_json(RESULTS)["cells"].values() if str(cell.get("cities")) == size]
    return number(sum(cell["solve_rank_energy"] for cell in cells) / len(cells))


def steps() -> list[dict[str, Any]]:
    """Return what was measured after each set of the chain."""
    found: list[dict[str, Any]] = read_json(RESULTS)["cells"]["chain"]["steps"]
    return found


def one_after_another() -> str:
    """After each set: its own recall, that of those before it, and what is kept."""
    rows = []
    for place, step in enumerate(steps(), start=1):
        cells = [step["targets unseen"], earlier(place), *(step[name] for name in KEPT.values())]
        shown = [f"{right} of {n}" if n else "–" for right, n in cells]
        rows.append([str(place), *shown, number(step["damage"], 3)])
    return table(["sets so far", "this set", "sets before it", *KEPT, "damage"], rows)


def earlier(place: int) -> tuple[int, int]:
    """How many countries of the sets before this one are picked after it, and of how many cities."""
    counts = [cell["targets unseen"] for cell in steps()[place - 1]["earlier"].values()]
    return sum(right for right, _ in counts), sum(n for _, n in counts)


def first_set(place: int) -> int:
    """How many of the first set's countries are picked after that number of sets."""
    step, name = steps()[place - 1], str(steps()[0]["set"])
    return int((step if place == 1 else step["earlier"][name])["targets unseen"][0])


def of_chain(place: int, name: str) -> str:
    """Return a count after that number of sets, or the damage in nats per token."""
    step = steps()[place - 1]
    return number(step["damage"], 3) if name == "damage" else f"{step[name][0]} of {step[name][1]}"
