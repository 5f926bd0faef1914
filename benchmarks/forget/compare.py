"""The guardrail beside other ways of making a model forget a topic, all at the same damage to other text.

    python -m benchmarks.forget.compare run --data FOLDER --results FOLDER              # goes on where it was cut
    python -m benchmarks.forget.compare run --data FOLDER --results FOLDER --topics last
    python -m benchmarks.forget.compare summary --results FOLDER

Methods: the bare model; a static clamp that is always on; a clamp that is decided token by token; the guardrail in the
published and in the default preset with each statistic; a prompt that forbids the topic; gradient ascent, GradDiff, NPO
and RMU, each with the same LoRA. Of every method the strength is taken that forgets most on validation texts of the
topic while other validation texts lose at most `choice.BUDGET` nats per token; for the gradient methods that
is the last state within the budget. Then, once, the test texts: loss on the topic and on other text, and which option
of a question is the likeliest, on the topic and on other subjects.

The rates of the gradient methods were taken over from `benchmarks.alignment.real`. Topics: `--topics validation` to try
things out, `test` for the report (the default), `last` once at the end; see `setting.py`. Cells lie in one JSON file
each. Guardrails are measured with `cached_front.py`: the layers up to the guarded one are run once a row.

Model and SAE are the demo's unless `--model` and `--sae` name others, as the command line does: `--model
google/gemma-2-2b-it --sae google/gemma-scope-2b-pt-res --sae-subfolder layer_3/width_16k/average_l0_142 --topics
wmdp-bio,wmdp-cyber` is the paper's own setting, for a GPU.
"""

import argparse
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.forget.cached_front import Front, cached_front
from benchmarks.forget.fitting import run_gradient, run_guard, run_prompt, time_front
from benchmarks.forget.measures import base_figures
from benchmarks.forget.methods import GRADIENTS, GUARDS, METHODS
from benchmarks.forget.setting import QUICK, SETS, Setting, Size, load_texts
from benchmarks.forget.table import summarise
from benchmarks.forget.topics import data_folder
from sae_unlearn.cli.inputs import load_model, load_sae


QUICK_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    add_setting_arguments(run)
    run.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    for command in (run, commands.add_parser("summary")):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per cell")
    commands.choices["summary"].add_argument("--write", action="store_true", help="also to benchmarks/results")
    args = parser.parse_args()
    if args.command == "summary":
        summarise(args.results, args.write)
        return
    for setting in settings(args):
        run_topic(setting, args.methods, args.results, QUICK_STEPS if args.quick else None)


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `settings` reads."""
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sae", default="demo")
    parser.add_argument("--sae-subfolder", help="folder of the SAE in its repository")
    parser.add_argument("--topics", default="test", help="'validation', 'test', 'last', or names, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the texts' order and of the LoRA")
    parser.add_argument("--quick", action="store_true", help="a few texts, to see that it runs; the figures say little")


def setting_arguments(args: argparse.Namespace) -> list[str]:
    """The same on a command line, but for the topics."""
    given = {"data": args.data, "model": args.model, "sae": args.sae, "sae-subfolder": args.sae_subfolder}
    found = [word for name, value in given.items() if value for word in (f"--{name}", value)]
    return [*found, "--seed", str(args.seed), *(["--quick"] if args.quick else [])]


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    """One setting per topic, all with the same model."""
    model, tokenizer = load_model(args.model)
    sae = load_sae(args.sae, args.sae_subfolder).to(model.device)
    size = QUICK if args.quick else Size()
    for name in SETS.get(args.topics) or args.topics.split(","):
        texts = load_texts(data_folder(args.data), name, size, args.seed)
        yield Setting(model, tokenizer, sae, texts, size, args.seed)


def run_topic(setting: Setting, methods: tuple[str, ...], results: Path, steps: int | None = None) -> None:
    """The cells of a topic that are not there yet."""
    base = base_cell(setting, results, front := Front())
    for method in methods:
        path = cell_path(results, setting, method)
        if path.exists():
            continue
        start, cpu = time.monotonic(), time.process_time()
        if method in GUARDS:
            with cached_front(setting.model, setting.layer, front):
                found = run_guard(setting, method, base, front)
        elif method in GRADIENTS:
            found = run_gradient(setting, method, base, **({"steps": steps} if steps else {}))
        else:
            found = run_prompt(setting, method, base)
        found |= {"cell_seconds": time.monotonic() - start, "cell_cpu_seconds": time.process_time() - cpu}
        write(path, {"topic": setting.texts.name, "method": method, "seed": setting.seed, **found})
        gc.collect()


def base_cell(setting: Setting, results: Path, front: Front) -> dict[str, Any]:
    """The bare model's figures, measured if they are not there yet."""
    path = cell_path(results, setting, "base")
    if not path.exists():
        timed = time_front(setting)
        with cached_front(setting.model, setting.layer, front):
            found = base_figures(setting)
        write(path, {"topic": setting.texts.name, "method": "base", "seed": setting.seed, **timed, **found})
    return json.loads(path.read_text())


def cell_path(results: Path, setting: Setting, method: str) -> Path:
    """The file of a cell."""
    slug = "".join(c if c.isalnum() else "_" for c in method).replace("__", "_")
    return results / f"{setting.texts.name}-{slug}-{setting.seed}.json"


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a file that is there in whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)
    print(path, flush=True)


if __name__ == "__main__":
    main()
