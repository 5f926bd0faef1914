"""The tables of `compare.py`, from one file per cell."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.forget.choice import BUDGET
from benchmarks.forget.methods import MEASURED
from sae_unlearn.evaluation import Estimate
from sae_unlearn.files.terminal import table


RESULTS = Path(__file__).parents[1] / "results"
HEADER = ["method", "strength", "topic", "other", "fires", "on other", "right, topic", "other", "s", "CPU s"]


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """All cells, methods in their order."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(cells, key=lambda cell: (cell["topic"], MEASURED.index(cell["method"]), cell["seed"]))


def summarise(folder: Path, keep: bool = False) -> str:
    """Print a table for each topic and one over all topics, and with `keep` write them beside the figures."""
    cells = read_cells(folder)
    topics = sorted({cell["topic"] for cell in cells})
    parts = [
        f"Change of loss, nats per token, with 95 % intervals over texts; other validation text may lose {BUDGET:g}. "
        "Shares of questions\nwhose right option is the likeliest. Seconds of fitting, without choosing the strength."
    ]
    for topic in topics:
        mine = [cell for cell in cells if cell["topic"] == topic]
        parts.append(f"{topic}\n\n" + table([HEADER, *(_row(cell) for cell in mine)]))
    if len(topics) > 1:
        parts.append("all topics\n\n" + table(_pooled(cells, topics)))
    text = "\n\n".join(parts)
    print(text)
    if keep:
        (RESULTS / "guardrail_baselines.txt").write_text(text + "\n")
        (RESULTS / "guardrail_baselines.json").write_text(json.dumps({"budget": BUDGET, "cells": cells}, indent=1))
    return text


def _row(cell: dict[str, Any]) -> list[str]:
    if cell["method"] == "base":
        return ["base", "", "", "", "", "", *(_share(cell.get(part)) for part in ("choices", "other_choices")), "", ""]
    if cell["chosen"] is None:
        return [cell["method"], "none within", *[""] * (len(HEADER) - 2)]
    return [
        cell["method"],
        f"{cell['chosen']['strength']:g}",
        *(_change(cell[part]["change"]) for part in ("test", "other_test")),
        *(_rate(cell[part].get("fired")) for part in ("test", "other_test")),
        *(_rate(cell[part] and cell[part]["right"]) for part in ("choices", "other_choices")),
        *(f"{cell['fit'][key]:.0f}" for key in ("seconds", "cpu_seconds")),
    ]


def _pooled(cells: list[dict[str, Any]], topics: list[str]) -> list[list[str]]:
    """All texts of all topics as one sample, of the methods that every topic has a strength for."""
    rows = [["method", "topics", "topic", "n", "other", "n"]]
    for method in MEASURED[1:]:
        mine = [cell for cell in cells if cell["method"] == method]
        within = [cell for cell in mine if cell["chosen"]]
        if not mine:
            continue
        row = [method, f"{len({cell['topic'] for cell in within})} of {len(topics)}"]
        for part in ("test", "other_test"):
            changes = [value for cell in within for value in cell[part]["changes"]]
            row += [_change(Estimate.mean(torch.tensor(changes)).to_dict()), str(len(changes))] if changes else ["", ""]
        rows.append(row)
    return rows


def _change(found: dict[str, Any]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _rate(found: dict[str, Any] | None) -> str:
    return f"{found['value']:.2f} (n={found['n']})" if found else ""


def _share(right: list[bool] | None) -> str:
    return _rate(Estimate.share(right).to_dict()) if right else ""
