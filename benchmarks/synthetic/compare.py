"""Forgetting measured against a model that never knew, in a world small enough to train both.

    python -m benchmarks.synthetic.compare tune    --results FOLDER      # settings, on the validation seed
    python -m benchmarks.synthetic.compare run     --results FOLDER      # five other seeds
    python -m benchmarks.synthetic.compare summary --results FOLDER --output benchmarks/results/alignment_synthetic

A small transformer learns facts about people; the gold model is the same transformer, from the same initial weights and
the same batches, with the targets' sentences left out. Every method trains a LoRA of one shape and is judged in the
last state whose damage (KL to the base model on validation rows) is within one budget.

Every cell of the grid (method, seed, settings) is one JSON file in the results folder and is skipped when it is there,
so a run that was cut goes on. The settings of a method are those with the smallest KL(gold || tuned) on the targets'
answers on the validation seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.synthetic.measures import measure, recall_without_name_state
from benchmarks.synthetic.methods import GRID, settings, train
from benchmarks.synthetic.setting import Setting, SettingConfig, prepare


VALIDATION_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
BUDGET = 0.05
"""Nats per answer token, or token of other text, on validation rows."""

COLUMNS = {
    "recall": ("behaviour", "targets", "right"),
    "recall, held-out form": ("behaviour", "targets_held_out_form", "right"),
    "p(right)": ("behaviour", "targets", "p_right"),
    "refused": ("behaviour", "targets", "refused"),
    "KL to gold": ("behaviour", "kl_gold"),
    "KL to gold, held-out form": ("behaviour", "kl_gold_held_out_form"),
    "neighbors": ("behaviour", "neighbors", "right"),
    "capitals": ("behaviour", "capitals"),
    "sums": ("behaviour", "sums"),
    "damage": ("damage",),
    "refitted AUC": ("alignment", "refitted_auc"),
    "kernel AUC": ("alignment", "kernel_auc"),
    "probe AUC": ("alignment", "probe_auc"),
    "variance ratio": ("alignment", "variance_ratio"),
    "relearnt after 20 steps": ("relearning", "right", 2),
    "relearnt after 40 steps": ("relearning", "right", 3),
}
"""Columns of the table, and where each stands in a cell."""


class Cells:
    """The results folder."""

    def __init__(self, folder: Path, budget: float, small: bool) -> None:
        self.folder, self.budget, self.small = folder, budget, small
        self._settings: dict[int, Setting] = {}

    def setting(self, seed: int) -> Setting:
        """The world and models of a seed, trained on first use."""
        if seed not in self._settings:
            config = SettingConfig.small(seed) if self.small else SettingConfig.full(seed)
            start = time.perf_counter()
            self._settings = {seed: prepare(config, self.folder / f"seed-{seed}")}
            print(f"seed {seed}: {self._settings[seed].facts} {time.perf_counter() - start:.0f} s", flush=True)
        return self._settings[seed]

    def path(self, method: str, seed: int, options: dict[str, Any]) -> Path:
        key = json.dumps([options, self.budget], sort_keys=True)
        return self.folder / "cells" / f"{method}-{seed}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.json"

    def cell(self, method: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        """The cell's content, from its file or by running it."""
        path = self.path(method, seed, options)
        if path.exists():
            return json.loads(path.read_text())
        setting, start = self.setting(seed), time.perf_counter()
        found: dict[str, Any] = {"method": method, "seed": seed, "options": options, "budget": self.budget}
        if method in ("base", "gold"):
            model = getattr(setting, method)
            left = recall_without_name_state(model, setting.world, setting.tokenizer, setting.sae.layer)
            found |= setting.facts | {"recall_without_name_state": left}
            found["damage"] = 0.0 if method == "base" else None
        else:
            model, keeper, facts = train(setting, method, options, self.budget)
            found |= facts | {"damage": keeper.damage, "step": keeper.step, "curve": keeper.curve}
        found["train_seconds"] = round(time.perf_counter() - start, 1)
        found |= measure(model, setting.base, setting.gold, setting.world, setting.tokenizer, setting.sae)
        found["seconds"] = round(time.perf_counter() - start, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1))
        partial.rename(path)
        shown = {name: _at(found, place) for name, place in COLUMNS.items()}
        print(method, seed, options, found.get("step"), json.dumps(_rounded(shown)), found["seconds"], flush=True)
        return found

    def best(self, method: str) -> dict[str, Any]:
        """The settings with the smallest KL(gold || tuned) on the validation seed."""
        tried = [self.cell(method, VALIDATION_SEED, options) for options in settings(method)]
        return min(tried, key=lambda cell: cell["behaviour"]["kl_gold"])["options"]


def _at(cell: dict[str, Any], place: tuple[Any, ...]) -> float | None:
    for key in place:
        cell = cell[key]
    return cell


def _rounded(row: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 3) for name, value in row.items()}


def summary(cells: Cells, methods: list[str], seeds: list[int]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every column, for every method whose cells are all there."""
    rows = {}
    for method in ("base", "gold", *methods):
        options = cells.best(method) if method in GRID else {}
        found = [cells.cell(method, seed, options) for seed in seeds]
        row: dict[str, Any] = {"options": options, "seeds": seeds}
        for name, place in COLUMNS.items():
            values = [_at(cell, place) for cell in found]
            if None not in values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                row[name] = {"mean": statistics.mean(values), "sd": spread, "values": values}
        rows[method] = row
    return {"budget": cells.budget, "validation_seed": VALIDATION_SEED, "methods": rows}


def _shown(column: dict[str, Any]) -> str:
    spread = f" ± {column['sd']:.2f}" if len(column["values"]) > 1 else ""
    return f"{column['mean']:.2f}{spread}"


def markdown(table: dict[str, Any]) -> str:
    """The summary as a table, one line per method: mean ± standard deviation over seeds, where there are several."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, row in table["methods"].items():
        shown = [_shown(row[c]) if c in row else "" for c in COLUMNS]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "tune", "run", "summary"))
    parser.add_argument("--results", type=Path, required=True, help="folder for models and cells")
    parser.add_argument("--output", type=Path, help="for summary: path of the .json and .md, without ending")
    parser.add_argument("--methods", nargs="+", choices=list(GRID), default=list(GRID))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--budget", type=float, default=BUDGET, help="nats per token (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="the reduced size of the tests")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    cells = Cells(args.results, args.budget, args.small)
    if args.what == "prepare":
        for seed in (VALIDATION_SEED, *args.seeds):
            cells.setting(seed)
    elif args.what == "tune":
        for method in args.methods:
            print("best of", method, cells.best(method), flush=True)
    elif args.what == "run":
        chosen = {method: cells.best(method) for method in args.methods}
        for seed in args.seeds:
            for method, options in {"base": {}, "gold": {}, **chosen}.items():
                cells.cell(method, seed, options)
    else:
        table = summary(cells, args.methods, args.seeds)
        print(markdown(table))
        if args.output:
            args.output.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
            args.output.with_suffix(".md").write_text(markdown(table))


if __name__ == "__main__":
    main()
