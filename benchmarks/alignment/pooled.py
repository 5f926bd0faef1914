"""Forget many disjoint sets of ten cities, each by itself, and pool the outcomes.

    python -m benchmarks.alignment.pooled run --data FOLDER --cities FOLDER --results FOLDER --recipe closed_form
    python -m benchmarks.alignment.pooled summary --results FOLDER

A run resumes where it was interrupted: one file for each recipe and set. `--choice` takes the sets that settings are
chosen on; they are never reported. `RECIPES` holds the settings; those of a commit were fixed before its results.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.alignment.data import QUESTIONS
from benchmarks.alignment.pooled_data import ALIGNED_QUESTIONS, load_pooled_data
from benchmarks.alignment.pooled_measures import LAYER, Meter
from benchmarks.alignment.pooled_summary import summarize
from benchmarks.forget.topics import data_folder
from sae_unlearn import SAEAlignmentConfig, SAEAlignmentTrainer
from sae_unlearn.alignment import EntitySet, reference
from sae_unlearn.alignment.closed_form import of_trainer
from sae_unlearn.alignment.closed_form.damage import Damage
from sae_unlearn.alignment.metrics import judge
from sae_unlearn.alignment.states import States
from sae_unlearn.backbone.layers import base_model_of
from sae_unlearn.demo import load_demo_model, load_demo_sae


SHARED_ROWS = 300
GRADIENT = {"init": "zero", "max_steps": 40, "learning_rate": 1e-3, "warmup_steps": 10}
RECIPES: dict[str, dict[str, Any]] = {
    "closed_form": {"init": "closed_form", "solve_lam": 20.0, "solve_gamma": 0.15},
    "gradient": {**GRADIENT, "lr_scheduler_type": "cosine"},
    "gradient, constant rate, no questions": {
        **GRADIENT,
        "lr_scheduler_type": "constant_with_warmup",
        "question_forms": False,
        "short_prompts": [],
    },
}


def settings(folder: str, cache: str, **options: Any) -> SAEAlignmentConfig:
    """Settings of every recipe, and its own."""
    return SAEAlignmentConfig(
        folder,
        **{
            "layer": LAYER,
            "per_device_train_batch_size": 10,
            "retain_max_length": 40,
            "questions": {"city": {"country": ALIGNED_QUESTIONS}},
            "max_reference_entities": 200,
            "min_separation": 0.0,
            "covariance_cache": cache,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "seed": 0,
            **options,
        },
    )


class StopAtDamage(TrainerCallback):
    """Keep the last state within a damage, measured every ten steps, and stop beyond it.

    Attributes:
        kept: weights of that state; empty while none was within.
        step: of that state.
    """

    def __init__(self, meter: Meter, limit: float) -> None:
        self.meter, self.limit = meter, limit
        self.kept: dict[str, torch.Tensor] = {}
        self.step = 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % 10:
            return
        training = model.training
        model.eval()
        spent = self.meter.damage(model)
        model.train(training)
        if spent <= self.limit:
            self.kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            self.step = state.global_step


def _remember_references() -> None:
    """Compute what every set needs of the base once in a process: states of other entities and of texts, predictions.

    The seconds of a set are therefore those of a trainer only for the first set of a process.
    """
    kept: dict[Any, Any] = {}
    states, frequency = reference.entity_states, reference._generic_frequency

    def entity_states(model: Any, rows: Any, layer: int, batch_size: int) -> States:
        key = tuple(tuple(row.input_ids) for row in rows)
        if len(rows) < SHARED_ROWS:
            return states(model, rows, layer, batch_size)
        if key not in kept:
            kept[key] = states(model, rows, layer, batch_size)
        return kept[key]

    def generic(model: Any, tokenizer: Any, sae: Any, layer: int, rows: Any, batch_size: int) -> Any:
        key = ("text", tuple(map(tuple, rows)))
        if key not in kept:
            kept[key] = frequency(model, tokenizer, sae, layer, rows, batch_size)
        return kept[key]

    def damage(model: Any, rows: Any, batch_size: int) -> Damage:
        key = ("damage", tuple((tuple(ids), tuple(places)) for ids, places in rows))
        if key not in kept:
            kept[key] = Damage(model, rows, batch_size)
        return kept[key]

    reference.entity_states, reference._generic_frequency, of_trainer.Damage = entity_states, generic, damage


def run(args: argparse.Namespace) -> None:
    """Run the sets of one recipe that have no file yet."""
    options = {**RECIPES[args.recipe], **json.loads(args.options)}
    data = load_pooled_data(data_folder(args.data), args.cities)
    sets = data.choice if args.choice else data.sets
    name = args.name or args.recipe
    wanted = range(args.sets[0], min(args.sets[1], len(sets)))
    paths = {
        i: args.results / f"{name.replace(' ', '_').replace(',', '')}-{'choice-' * args.choice}{i}.json" for i in wanted
    }
    if all(path.exists() for path in paths.values()):
        return
    torch.set_num_threads(1)
    _remember_references()
    model, tokenizer = load_demo_model()
    args.cache.mkdir(parents=True, exist_ok=True)
    meter = Meter(model, tokenizer, data, args.cache / "facts.json")
    meter.read_base()
    run_sets(args, meter, options, paths)


def run_sets(args: argparse.Namespace, meter: Meter, options: dict[str, Any], paths: dict[int, Path]) -> None:
    """Align and measure the sets that have no file yet."""
    model, data = meter.model, meter.data
    sets = data.choice if args.choice else data.sets
    for i, path in paths.items():
        if path.exists():
            continue
        targets, others = sets[i], sets[(i + 1) % len(sets)]
        if args.base:
            before = args.results / f"base-{'choice-' * args.choice}{i}.json"
            if not before.exists():
                base = meter.measure(model, targets, others, i) if i == args.sets[0] else meter.recall(model, targets)
                if i == args.sets[0]:
                    base |= meter.choice(model, data.unknown_test, QUESTIONS[1], "unknown unseen")
                write(before, {"recipe": "base", "set": i, **base})
        stop = StopAtDamage(meter, args.damage)
        callbacks = [stop] if options["init"] == "zero" else []
        trainer, seconds = trained(meter, model, targets, args.cache, options, callbacks)
        tuned = trainer.model.eval()
        if stop.kept:
            for key, value in tuned.named_parameters():
                if key in stop.kept:
                    value.data.copy_(stop.kept[key])
        found = {"recipe": args.name or args.recipe, "set": i, "options": options, "targets": targets.names}
        found |= {**seconds, "step": stop.step, **judged(trainer)}
        found |= meter.measure(tuned, targets, others, i)
        if i < args.rounded:
            found |= meter.rounded(tuned, targets)
        write(path, found)
        tuned.save_pretrained(args.results / "adapters" / path.stem)
        forget_adapters(tuned.unload())


def trained(
    meter: Meter,
    model: Any,
    targets: EntitySet,
    cache: Path,
    options: dict[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[SAEAlignmentTrainer, dict[str, float]]:
    """A trainer that has trained, and the seconds of its preparation and of its training."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SAEAlignmentTrainer(
            model=model,
            args=settings(folder, str(cache), **options),
            processing_class=meter.tokenizer,
            sae=load_demo_sae(),
            train_dataset=targets,
            known=meter.data.known_train,
            unknown=meter.data.unknown_train,
            retain_dataset=meter.data.retain,
            callbacks=[*callbacks],
        )
        ready = time.monotonic()
        trainer.train()
    return trainer, {"seconds preparing": ready - start, "seconds": time.monotonic() - ready}


def judged(trainer: SAEAlignmentTrainer) -> dict[str, Any]:
    """What was solved, and where the states of the targets are."""
    found = {**trainer.solution.to_dict(), "tried": trainer.solution.tried} if trainer.solution else {}
    states = reference.entity_states(base_model_of(trainer.model), trainer.eval_dataset.targets, LAYER, 32)
    return found | judge(trainer.setting, states) | trainer._ways.judge(trainer.eval_dataset, states)


def forget_adapters(model: Any) -> None:
    """Take PEFT's note of an adapter off a model that has none any more."""
    if hasattr(model, "peft_config"):
        del model.peft_config


def write(path: Path, found: dict[str, Any]) -> None:
    """A cell, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)
    print(json.dumps({k: v for k, v in found.items() if k not in ("targets", "options")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    add = command.add_argument
    add("--data", help="data folder; default $SAE_UNLEARN_DATA")
    add("--cities", type=Path, required=True, help="folder of label_by_probability")
    add("--results", type=Path, required=True, help="folder of one file per cell")
    add("--cache", type=Path, required=True, help="folder of the covariances, and of the facts that the base knows")
    add("--recipe", choices=list(RECIPES), required=True)
    add("--name", help="of the files; the recipe's by default")
    add("--options", default="{}", help="JSON of settings in place of the recipe's, to choose on --choice")
    add("--choice", action="store_true", help="the sets that settings are chosen on")
    add("--sets", nargs=2, type=int, default=(1, 21), help="from, and up to but not including")
    add("--damage", type=float, default=0.03, help="largest damage of a trained state that is kept")
    add("--base", action="store_true", help="measure the base on the same sets as well")
    add("--rounded", type=int, default=6, help="sets below this number are also rounded")
    commands.add_parser("summary").add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "summary":
        summarize(args.results)
        return
    args.results.mkdir(parents=True, exist_ok=True)
    run(args)


if __name__ == "__main__":
    main()
