"""The table of `real.py`, from one file per cell."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae_unlearn.alignment.metrics import Portrait
from sae_unlearn.alignment.plot import draw_portrait
from sae_unlearn.files.terminal import table


RESULTS = Path(__file__).parents[1] / "results"
PICTURE = Path(__file__).parents[2] / "docs" / "alignment.png"


def summarise(folder: Path, order: Sequence[str], budget: float) -> None:
    """Print the table and write it with all figures to `benchmarks/results`, the methods in this order."""
    every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    cells = [cell for cell in every if cell["method"] != "exchange"]
    exchanged = [cell for cell in every if cell["method"] == "exchange"]
    methods = sorted({cell["method"] for cell in cells}, key=order.index)
    columns: list[tuple[str, Callable[[dict[str, Any]], float | None]]] = [
        ("targets, seen form", lambda c: c["targets seen"]["value"]),
        ("targets, new form", lambda c: c["targets unseen"]["value"]),
        ("  answered rightly", lambda c: c["said of targets"]["right"]["value"]),
        ("  refused", lambda c: c["said of targets"]["refused"]["value"]),
        ("unknown", lambda c: c["unknown unseen"]["value"]),
        ("neighbors", lambda c: c["neighbors unseen"]["value"]),
        ("near facts", lambda c: c["near"]["value"]),
        ("other facts", lambda c: c["unrelated"]["value"]),
        ("text loss", lambda c: c["text loss"]["value"]),
        ("text KL", lambda c: c["text KL"]["value"] if "text KL" in c else 0.0),
        ("damage", lambda c: c.get("damage", 0.0)),
        ("step", lambda c: c.get("step")),
        ("P(known)", lambda c: c["probe unseen"]["p_known"]["value"]),
        ("probe AUC", lambda c: c["probe unseen"]["auc"]["value"]),
        ("re-fitted linear AUC", lambda c: c["linear unseen"]["targets"]["value"]),
        ("  floor", lambda c: c["linear unseen"]["floor"]["value"]),
        ("  ceiling", lambda c: c["linear unseen"]["ceiling"]["value"]),
        ("re-fitted kernel AUC", lambda c: c["kernel unseen"]["targets"]["value"]),
        ("  floor", lambda c: c["kernel unseen"]["floor"]["value"]),
        ("  ceiling", lambda c: c["kernel unseen"]["ceiling"]["value"]),
        ("variance", lambda c: c["variance ratio unseen"]["value"]),
        *(
            (f"held-out {side} latents", lambda c, side=side: c[f"held-out {side} latents unseen"]["targets"]["value"])
            for side in ("known", "unknown")
        ),
        *(
            (f"leak: {route}", lambda c, route=route: (c.get(f"leak: {route}") or {}).get("value"))
            for route in ("capital", "largest", "headquarters")
        ),
        ("direction x1", lambda c: c.get("direction", {}).get("1.0", {}).get("value")),
        ("relearnt, 20 steps", lambda c: c.get("relearning", {}).get("20", {}).get("value")),
        ("int4", lambda c: c.get("rounding", {}).get("4.0", {}).get("value")),
    ]
    rows = [["method", "seeds", *(title for title, _ in columns)]]
    for method in methods:
        mine = [cell for cell in cells if cell["method"] == method]
        rows.append([method, str(len(mine)), *(_mean([read(cell) for cell in mine]) for _, read in columns)])
    text = table([list(column) for column in zip(*rows, strict=True)])
    print(text)
    portraits = [cell["portrait"] for cell in cells if cell["method"] == "ours" and "portrait" in cell]
    if portraits:
        draw_portrait(Portrait(**portraits[0]), PICTURE)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "alignment_real.json").write_text(
        json.dumps({"budget": budget, "cells": cells, "exchange": exchanged}, indent=1)
    )
    (RESULTS / "alignment_real.txt").write_text(text + "\n")


def _mean(values: list[float | None]) -> str:
    """Mean over seeds, and where there are several their smallest and largest."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    spread = f" ({min(there):.2f} to {max(there):.2f})" if len(there) > 1 else ""
    return f"{statistics.fmean(there):.2f}{spread}"
