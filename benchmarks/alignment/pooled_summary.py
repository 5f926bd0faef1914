"""Pool the cells of `pooled`: shares over all cities with Wilson intervals, and paired differences over sets."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.alignment.pooled_measures import PARTS
from sae_unlearn.files.terminal import table
from sae_unlearn.stats import wilson_interval


RESULTS = Path(__file__).parents[1] / "results" / "alignment_pooled.json"
SHARES = (
    "targets seen",
    "targets unseen",
    "targets said",
    "unknown unseen",
    "others unseen",
    "near",
    "unrelated, relation held",
    "unrelated, relation not held",
)
"""Counts of right answers. `others` are the cities of the next set, and four sets together are asked all facts."""
FACTS = SHARES[5:]
MEANS = (
    "damage",
    "way_left",
    "way_error",
    "known_auc",
    "variance_ratio",
    "solve_lam",
    "solve_gamma",
    "solve_damage",
    "seconds",
)
PAIRED = ("targets unseen", "targets said", "targets seen", *SHARES[4:], "damage", "probe targets")
"""Measures of which two recipes are compared set by set."""


def summarize(folder: Path) -> None:
    """Print the table and write all cells to `benchmarks/results`."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if "choice" not in path.name]
    recipes: dict[str, Any] = {}
    for cell in cells:
        recipes.setdefault(cell["recipe"], []).append(cell)
    found = {name: pooled(mine) for name, mine in sorted(recipes.items())}
    if "base" in found:  # the targets of one set are the others of the set before
        found["base"]["others unseen"] = found["base"]["targets unseen"]
    against = {name: paired(recipes["closed_form"], mine) for name, mine in recipes.items() if "gradient" in name}
    RESULTS.write_text(json.dumps({"recipes": found, "against": against, "cells": cells}, indent=1) + "\n")
    rows = [["recipe", "sets", *SHARES, *MEANS]]
    for name, row in found.items():
        shares = [shown(row[s]) if s in row else "-" for s in SHARES]
        rows.append([name, str(row["sets"]), *shares, *(f"{row[m]:.3g}" if m in row else "-" for m in MEANS)])
    print(table([list(column) for column in zip(*rows, strict=True)]))


def pooled(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one recipe.

    Shares are over all sets. The interval of a share counts every city and every fact once, however often it was asked:
    asking it again of another model does not make it another city.
    """
    found: dict[str, Any] = {"sets": len(cells), "targets": sum(cell["targets seen"][1] for cell in cells)}
    for name in (*SHARES, "int8", "int4"):
        counts = [_count(cell, name) for cell in cells if _count(cell, name)]
        if not counts:
            continue
        right, n = (sum(values) for values in zip(*counts, strict=True))
        times = asked_times(name, len(counts))
        found[name] = {**share(right, n, times), "n": round(n / times)}
    for name in ("targets unseen", "targets seen"):
        total = [cell[f"{name} p"] for cell in cells if f"{name} p" in cell]
        if total:
            found[f"{name} p"] = sum(p for p, _ in total) / sum(n for _, n in total)
    for name in MEANS:
        values = [cell[name] for cell in cells if cell.get(name) is not None]
        if values:
            found[name] = statistics.fmean(values)
    for part in ("targets", "floor", "ceiling"):
        values = [cell["probe"][part] for cell in cells if "probe" in cell]
        if values:
            found[f"probe {part}"] = {"value": statistics.fmean(values), "sd": statistics.pstdev(values)}
    return found


def share(right: float, n: float, times: float = 1.0) -> dict[str, float]:
    """A share with Wilson's interval, if each city or fact was asked that often."""
    low, high = wilson_interval(right / times, n / times)
    return {"value": right / n, "low": low, "high": high}


def shown(one: dict[str, Any]) -> str:
    """A share with its interval, for a table."""
    return f"{one['value']:.2f} ({one['low']:.2f}-{one['high']:.2f})"


def paired(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Differences of two recipes, `first - second`, over the sets that both have.

        d_i = first_i - second_i     for set i, a share or another figure
        mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n)

    There are no figures for fewer than two sets, which have no interval.

    Args:
        first (sequence of dict): Cells of one recipe.
        second (sequence of dict): Cells of another.
    """
    one, other = ({cell["set"]: cell for cell in cells} for cells in (first, second))
    both = sorted(set(one) & set(other))
    found: dict[str, Any] = {"sets": both}
    for name in PAIRED:
        pairs = [(_figure(one[i], name), _figure(other[i], name)) for i in both]
        if len(pairs) < 2 or any(value is None for pair in pairs for value in pair):
            continue
        values = [a - b for a, b in pairs]
        mean = statistics.fmean(values)
        half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        means = {"first": statistics.fmean(a for a, _ in pairs), "second": statistics.fmean(b for _, b in pairs)}
        found[name] = {**means, "value": mean, "low": mean - half, "high": mean + half, "n": len(values)}
    return found


def _figure(cell: dict[str, Any], name: str) -> float | None:
    """A measure of one set as one number."""
    if name == "probe targets":
        return cell["probe"]["targets"] if "probe" in cell else None
    found = cell.get(name)
    return found[0] / found[1] if isinstance(found, list) else found


def asked_times(name: str, sets: int) -> float:
    """How often each city or fact was asked in so many sets."""
    return max(1.0, sets / PARTS) if name in FACTS else 1.0


def _count(cell: dict[str, Any], name: str) -> list[float] | None:
    found = cell.get(name)
    return found["targets unseen"] if isinstance(found, dict) else found
