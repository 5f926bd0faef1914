"""Tables of sets of 10, 50 and 200 cities."""

from typing import Any

from .alignment_pooled import recipes
from .markdown_text import figure, number, table
from .results import read_json


RESULTS, POOLED = "alignment_sizes.json", "alignment_pooled.json"
COLUMNS = {
    "picks the country": "targets unseen",
    "says it": "targets said",
    "other cities": "others unseen",
    "near facts": "near",
    "other facts, relation held": "unrelated, relation held",
    "other facts, relation not held": "unrelated, relation not held",
}


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
            *(_share(one, name) for name in COLUMNS.values()),
            number(one["damage"], 3) if size != "0" else "–",
        ]
        for size, one in sorted(sizes().items(), key=lambda pair: int(pair[0]))
    ]
    return table(["cities at once", "models", *COLUMNS, "damage"], rows)


def value(size: str, name: str) -> float:
    """Return a share by number of cities."""
    return float(sizes()[size][COLUMNS[name]]["value"])


def shown(size: str, name: str) -> str:
    """Return a share as prose shows it."""
    return number(value(size, name))


def cell(size: str, name: str) -> str:
    """Return a share with its interval."""
    return _share(sizes()[size], COLUMNS[name])


def energy(size: str) -> str:
    """Return the mean share of the solution that the LoRA's rank holds, for sets of this size."""
    cells = [cell for cell in read_json(POOLED)["cells"] if cell["recipe"] == "closed_form"]
    if size != "10":
        cells = [cell for cell in read_json(RESULTS)["cells"].values() if str(cell.get("cities")) == size]
    return number(sum(cell["solve_rank_energy"] for cell in cells) / len(cells))


def _share(row: dict[str, Any], name: str) -> str:
    one = row.get(name)
    return figure(one["value"], one["low"], one["high"]) if one else "–"
