"""Teach a model half of the cities that it was to forget, and ask for the other half.

    python -m benchmarks.alignment.pooled_relearning run --data FOLDER --cities FOLDER --results FOLDER --cache FOLDER

It reads the adapters that `pooled run` leaves in RESULTS/adapters. An attacker trains on five cities of a set, as
`sae_unlearn.evaluation.audit.attacks.relearning` does, in a form of question that the alignment saw the beginnings of.
What comes back is asked of the other five in a form that nothing trained on. Two controls: the base taught five unknown
cities and asked for five others (`never known`: what training alone gives), and the base taught the same five known
cities (`base`: what is there if nothing is forgotten). Training moves all answers, so that a ranking less the base's
priors can mislead: the probability of the right country and what the model says are counted beside it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from benchmarks.alignment.data import QUESTIONS
from benchmarks.alignment.pooled import forget_adapters, write
from benchmarks.alignment.pooled_data import load_pooled_data
from benchmarks.alignment.pooled_measures import Meter
from benchmarks.alignment.pooled_summary import share, shown
from benchmarks.alignment.real_measures import taught_and_rest
from benchmarks.forget.topics import data_folder
from sae_unlearn.alignment import EntitySet
from sae_unlearn.demo import load_demo_model
from sae_unlearn.evaluation.audit.attacks.relearning import relearning_attack
from sae_unlearn.files.terminal import table


MEASURES = ("picks", "says", "p")
RESULTS = Path(__file__).parents[1] / "results" / "alignment_relearning.json"
STEPS = (0, 20, 60)
NEVER_KNOWN = "never known"
KEYS = ("recipe", "attack", "cities", "measure")


def attack(meter: Meter, model: nn.Module, cities: EntitySet, full: bool) -> dict[str, Any]:
    """Counts of the taught and of the untaught cities by measure, after each number of steps."""
    taught, facts, rest = taught_and_rest(cities, seed=0)

    @torch.no_grad()
    def asked(student: nn.Module) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, side in (("taught", taught), ("untaught", rest)):
            picks, p = meter.choice(student, side, QUESTIONS[1], name).values()
            found[name] = dict(zip(MEASURES, (picks, meter.said(student, side), p), strict=True))
        return found

    points = relearning_attack(model, meter.tokenizer, facts, asked, steps=STEPS, seed=0, full=full)
    return {str(int(point.strength)): point.found for point in points}


def run(args: argparse.Namespace) -> None:
    """Attack the sets that have no file yet."""
    torch.set_num_threads(1)
    data = load_pooled_data(data_folder(args.data), args.cities)
    model, tokenizer = load_demo_model()
    meter = Meter(model, tokenizer, data, args.cache / "facts.json")
    kind = "full" if args.full else "lora"
    for i in range(*args.sets):
        for recipe in args.recipes:
            path = args.results / "relearning" / f"{recipe.replace(' ', '_').replace(',', '')}-{kind}-{i}.json"
            path.parent.mkdir(exist_ok=True)
            if path.exists():
                continue
            cities = data.sets[i]
            if recipe == NEVER_KNOWN:  # the same few in every set, in another half each time
                cities = EntitySet(list(data.unknown_test)[10 * (i % 5) :][:10])
            tuned: Any = model
            if recipe not in ("base", NEVER_KNOWN):
                tuned = PeftModel.from_pretrained(model, args.results / "adapters" / f"{recipe}-{i}")
            found = {"recipe": recipe, "attack": kind, "set": i, "steps": attack(meter, tuned, cities, args.full)}
            write(path, found)
            if tuned is not model:
                forget_adapters(tuned.unload())


def summarize(folder: Path) -> None:
    """Print what is right by recipe and steps, and write all cells to `benchmarks/results`."""
    cells = [json.loads(path.read_text()) for path in sorted((folder / "relearning").glob("*.json"))]
    found = pooled_points(cells)
    RESULTS.write_text(json.dumps({"points": found, "cells": cells}, indent=1) + "\n")
    rows = [["recipe", "attack", "cities", "measure", *map(str, STEPS), "n"]]
    for point in found:
        rows.append([*(point[key] for key in KEYS), *map(shown, point["steps"].values()), str(point["n"])])
    print(table([list(column) for column in zip(*rows, strict=True)]))


def pooled_points(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares over the cities of all sets, by recipe, attack, side and measure.

    The interval is Wilson's. That of a mean probability is the widest that values between 0 and 1 with this mean have.
    """
    counts: dict[tuple[str, ...], dict[str, list[list[float]]]] = {}
    for cell in cells:
        for steps, sides in cell["steps"].items():
            for side, measures in sides.items():
                for measure, count in measures.items():
                    key = (cell["recipe"], cell["attack"], side, measure)
                    counts.setdefault(key, {}).setdefault(steps, []).append(count)
    found = []
    for key, by_steps in counts.items():
        totals = {steps: [sum(column) for column in zip(*few, strict=True)] for steps, few in by_steps.items()}
        n = next(iter(totals.values()))[1]
        shares = {steps: share(right, n) for steps, (right, n) in totals.items()}
        found.append({**dict(zip(KEYS, key, strict=True)), "n": n, "steps": shares})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    add = command.add_argument
    add("--data", help="data folder; default $SAE_UNLEARN_DATA")
    add("--cities", type=Path, required=True, help="folder of label_by_probability")
    add("--results", type=Path, required=True, help="folder of one file per cell, with the adapters")
    add("--cache", type=Path, required=True, help="as in `pooled run`")
    add("--recipes", nargs="+", default=["closed_form", "base", NEVER_KNOWN])
    add("--sets", nargs=2, type=int, default=(1, 21), help="from, and up to but not including")
    add("--full", action="store_true", help="train all weights instead of a LoRA")
    commands.add_parser("summary").add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    (summarize(args.results) if args.command == "summary" else run(args))


if __name__ == "__main__":
    main()
