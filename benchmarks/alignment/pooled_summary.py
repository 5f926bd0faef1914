"""Pool the cells of `pooled`: shares over all cities with Wilson intervals, sums over sets of every count."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_unlearn.files.terminal import table
from sae_unlearn.stats import wilson_interval


RESULTS = Path(__file__).parents[1] / "results" / "alignment_pooled.json"
SHARES = (
    "targets seen",
    "targets unseen",
    "targets said",
    "unknown unseen",
    "neighbors unseen",
    "near",
    "unrelated, relation held",
    "unrelated, relation not held",
)
"""Counts of right answers. All but the first three are of the same cities or facts in every set."""
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


def summarize(folder: Path) -> None:
    """Print the table and write all cells to `benchmarks/results`."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if "choice" not in path.name]
    recipes: dict[str, Any] = {}
    for cell in cells:
        recipes.setdefault(cell["recipe"], []).append(cell)
    found = {name: pooled(mine) for name, mine in sorted(recipes.items())}
    RESULTS.write_text(json.dumps({"recipes": found, "cells": cells}, indent=1) + "\n")
    rows = [["recipe", "sets", *SHARES, *MEANS]]
    for name, row in found.items():
        shares = [
            f"{row[s]['value']:.2f} ({row[s]['low']:.2f}-{row[s]['high']:.2f})" if s in row else "-" for s in SHARES
        ]
        rows.append([name, str(row["sets"]), *shares, *(f"{row[m]:.3g}" if m in row else "-" for m in MEANS)])
    print(table([list(column) for column in zip(*rows, strict=True)]))


def pooled(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one recipe.

    A share of targets is over the targets of all sets. A share of other cities or facts is the mean over sets, and its
    interval that of the cities or facts of one set: they are the same in all, so more sets do not make it narrower.
    """
    found: dict[str, Any] = {"sets": len(cells), "targets": sum(cell["targets seen"][1] for cell in cells)}
    for name in (*SHARES, "int8", "int4"):
        counts = [_count(cell, name) for cell in cells if _count(cell, name)]
        if not counts:
            continue
        right, n = (sum(values) for values in zip(*counts, strict=True))
        same = not (name.startswith("targets") or name.startswith("int"))
        low, high = wilson_interval(right / len(counts), n / len(counts)) if same else wilson_interval(right, n)
        found[name] = {"value": right / n, "low": low, "high": high, "n": n // len(counts) if same else n}
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


def _count(cell: dict[str, Any], name: str) -> list[float] | None:
    found = cell.get(name)
    return found["targets unseen"] if isinstance(found, dict) else found
