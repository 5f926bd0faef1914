"""Forget 50 or 200 cities at once, and one set after another: what the size of a set and the order cost.

    python -m benchmarks.alignment.pooled_sizes run --data FOLDER --cities FOLDER --results FOLDER --cache FOLDER
    python -m benchmarks.alignment.pooled_sizes summary --results FOLDER

The cities are the 200 of `pooled`, so that its twenty sets of ten are the third size. Settings are its closed form's.
`together` puts 5 or 20 sets into one, and aligns that. `chain` aligns a set, merges the LoRA into the weights, aligns
the next set on these weights, and so on; after each, all sets so far are asked, and damage and other facts are those
against the model before the first. A run goes on where it was cut, a chain at its first set.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.alignment.data import QUESTIONS
from benchmarks.alignment.pooled import RECIPES, forget_adapters, judged, trained, write
from benchmarks.alignment.pooled_data import load_pooled_data
from benchmarks.alignment.pooled_measures import DAMAGE_CITIES, Meter
from benchmarks.alignment.pooled_summary import share, shown
from benchmarks.forget.topics import data_folder
from sae_unlearn.alignment import EntitySet
from sae_unlearn.demo import load_demo_model
from sae_unlearn.files.terminal import table


RESULTS = Path(__file__).parents[1] / "results" / "alignment_sizes.json"
SETS = range(1, 21)
TOGETHER = (5, 20)
"""Sets of ten that become one."""
CHAIN = (1, 2, 3, 4)
"""Sets that are forgotten one after another."""
RECIPE = "closed_form"
SHARES = (
    "targets unseen",
    "targets said",
    "others unseen",
    "near",
    "unrelated, relation held",
    "unrelated, relation not held",
)


def groups(size: int) -> list[tuple[int, ...]]:
    """The numbers of the sets that are put together."""
    return [tuple(SETS[start : start + size]) for start in range(0, len(SETS), size)]


def together(meter: Meter, numbers: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """Some sets as one."""
    targets = EntitySet([city for i in numbers for city in meter.data.sets[i]])
    trainer, seconds = trained(meter, meter.model, targets, args.cache, RECIPES[RECIPE])
    tuned = trainer.model.eval()
    found = {"cities": len(targets), "sets": list(numbers), **seconds, **judged(trainer)}
    found |= meter.measure(tuned, targets, neighbors(meter), None)
    forget_adapters(tuned.unload())
    return found


def chain(meter: Meter, args: argparse.Namespace) -> dict[str, Any]:
    """Sets one after another. It leaves the meter's model changed."""
    model, steps = meter.model, []
    for length, number in enumerate(CHAIN, start=1):
        trainer, seconds = trained(meter, model, meter.data.sets[number], args.cache, RECIPES[RECIPE])
        solved = judged(trainer)
        model = trainer.model.merge_and_unload().eval()
        forget_adapters(model)
        found = {"set": number, **seconds, **solved}
        found |= meter.measure(model, meter.data.sets[number], neighbors(meter), None)
        found["earlier"] = {str(i): meter.recall(model, meter.data.sets[i]) for i in CHAIN[: length - 1]}
        steps.append(found)
    return {"steps": steps}


def neighbors(meter: Meter) -> EntitySet:
    """Known cities of no set; damage is measured on others."""
    return EntitySet(list(meter.data.known_test)[DAMAGE_CITIES:])


def base(meter: Meter) -> dict[str, Any]:
    """The model before anything is forgotten."""
    targets = EntitySet([city for i in SETS for city in meter.data.sets[i]])
    unknown = meter.choice(meter.model, meter.data.unknown_test, QUESTIONS[1], "unknown unseen")
    return meter.measure(meter.model, targets, neighbors(meter), None) | unknown


def run(args: argparse.Namespace) -> None:
    """The cells that have no file yet."""
    torch.set_num_threads(1)
    args.results.mkdir(parents=True, exist_ok=True)
    data = load_pooled_data(data_folder(args.data), args.cities)
    model, tokenizer = load_demo_model()
    meter = Meter(model, tokenizer, data, args.cache / "facts.json")
    meter.read_base()
    cells = {"base": lambda: base(meter)}
    for size in TOGETHER:
        for numbers in groups(size):
            cells[f"together-{numbers[0]}-{numbers[-1]}"] = lambda numbers=numbers: together(meter, numbers, args)
    cells["chain"] = lambda: chain(meter, args)  # the last, for it changes the model
    for name, cell in cells.items():
        path = args.results / f"{name}.json"
        if name in args.cells and not path.exists():
            write(path, {"cell": name, **cell()})


def summarize(folder: Path) -> None:
    """Print the shares by size, and write all cells to `benchmarks/results`."""
    cells = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    found = {"cells": cells, "sizes": by_size(cells)}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    rows = [["cities", "targets", *SHARES, "damage"]]
    for size, one in found["sizes"].items():
        rows.append([size, str(one["targets"]), *(shown(one[name]) for name in SHARES), f"{one['damage']:.3f}"])
    print(table([list(column) for column in zip(*rows, strict=True)]))


def by_size(cells: dict[str, Any]) -> dict[str, Any]:
    """The figures by number of cities in a set; "0" is the base.

    The interval of a share counts each city and each fact once, however many models were asked.
    """
    found: dict[str, Any] = {}
    sizes: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        if name != "chain":
            sizes.setdefault(str(cell.get("cities", 0)), []).append(cell)
    for size, mine in sorted(sizes.items(), key=lambda pair: int(pair[0])):
        one: dict[str, Any] = {"models": len(mine), "targets": sum(cell["targets unseen"][1] for cell in mine)}
        for name in SHARES:
            right, n = (sum(column) for column in zip(*(cell[name] for cell in mine), strict=True))
            times = 1 if name.startswith("targets") else len(mine)
            one[name] = {**share(right, n, times), "n": n // times}
        one["damage"] = sum(cell["damage"] for cell in mine) / len(mine)
        found[size] = one
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    add = command.add_argument
    names = ["base", *(f"together-{few[0]}-{few[-1]}" for size in TOGETHER for few in groups(size)), "chain"]
    add("--data", help="data folder; default $SAE_UNLEARN_DATA")
    add("--cities", type=Path, required=True, help="folder of label_by_probability")
    add("--results", type=Path, required=True, help="folder of one file per cell")
    add("--cache", type=Path, required=True, help="as in `pooled run`")
    add("--cells", nargs="+", choices=names, default=names)
    commands.add_parser("summary").add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    (summarize(args.results) if args.command == "summary" else run(args))


if __name__ == "__main__":
    main()
