"""The alignment on a real model: ten cities that it knows, forgotten together, by ours and by the baselines.

    python -m benchmarks.alignment.real run --data FOLDER --cities FOLDER --results FOLDER   # goes on where it was cut
    python -m benchmarks.alignment.real summary --results FOLDER

Every method trains a LoRA of rank 8 on the linear modules of blocks 0 to the SAE's layer, on the same cities, and is
measured at equal damage: of its states, one every few steps, the last one whose KL to the base on validation rows
(questions about cities that no method trains on, and other text) is within `BUDGET`. The settings were fixed on the
targets of a seed (`VALIDATION_SEED`) that is not reported.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from benchmarks.alignment.data import QUESTIONS, load_alignment_data, question_facts
from benchmarks.alignment.real_measures import TRAINED_QUESTIONS, Parts, attack, exchange, measure, read_base
from benchmarks.alignment.table import summarise
from benchmarks.baselines import BudgetCallback, DamageBudget, encode, get_method, train_baseline
from benchmarks.forget.topics import data_folder
from sae_unlearn import SAEAlignmentConfig, SAEAlignmentTrainer
from sae_unlearn.alignment import Entity, EntitySet
from sae_unlearn.alignment.adapter import adapter_on
from sae_unlearn.cli.inputs import load_model, load_sae


VALIDATION_SEED = 99
BUDGET, EVERY, STEPS, RATE = 0.03, 10, 40, 1e-3
BASELINE_EVERY, BASELINE_STEPS, BASELINE_BATCH = 3, 21, 6  # they reach the budget in a few steps
LEAST_SCALE = 0.05  # a method that is never within the budget is trained again at a quarter of its rate
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, raw states": {"sae": None},
    "ours, centroid": {"preset": "centroid"},
}
BASELINES: dict[str, dict[str, Any]] = {
    "gradient ascent": {"method": "ga", "learning_rate": 5e-5},
    "GradDiff": {"method": "grad_diff", "learning_rate": 1e-4},
    "NPO": {"method": "npo", "learning_rate": 1e-4},
    "RMU": {"method": "rmu", "learning_rate": 2e-4},
    "I don't know": {"method": "refusal", "learning_rate": 1e-4},
}
SEEDS = {"ours": (0, 1, 2), "ours, raw states": (0, 1, 2), "ours, centroid": (0,), **dict.fromkeys(BASELINES, (0,))}
VALIDATION = 16


class Row(NamedTuple):
    """A question and its answer, or a text with no answer, for the baselines and the damage."""

    prompt: str
    answer: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    run.add_argument("--cities", default=os.environ.get("SAE_UNLEARN_CITIES"), help="default $SAE_UNLEARN_CITIES")
    run.add_argument("--model", default="demo")
    run.add_argument("--sae", default="demo")
    run.add_argument("--methods", nargs="*", default=[*OURS, *BASELINES], choices=[*OURS, *BASELINES])
    run.add_argument("--seeds", nargs="*", type=int, help="default: as many as are reported")
    run.add_argument("--exchange", action="store_true", help="only exchange the names' states in the base model")
    for command in (run, commands.add_parser("summary")):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per cell")
    args = parser.parse_args()
    if args.command == "summary":
        summarise(args.results, ["base", *OURS, *BASELINES], BUDGET)
        return
    if not args.cities:
        raise SystemExit("Name the folder of labeled cities with --cities or SAE_UNLEARN_CITIES.")
    args.results.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(args.model)
    sae = load_sae(args.sae)
    if args.exchange:
        for seed in args.seeds or SEEDS["ours"]:
            data = load_alignment_data(data_folder(args.data), Path(args.cities), seed)
            found = exchange(Parts(model, tokenizer, sae, data, seed))
            _write(args.results / f"exchange-{seed}.json", {"method": "exchange", "seed": seed, **found})
        return
    cells = [(method, seed) for method in args.methods for seed in (args.seeds or SEEDS[method])]
    for method, seed in sorted(cells, key=lambda cell: cell[1]):
        path = args.results / f"{method.replace(' ', '_').replace(',', '').replace(chr(39), '')}-{seed}.json"
        if path.exists():
            continue
        data = load_alignment_data(data_folder(args.data), Path(args.cities), seed)
        parts = Parts(model, tokenizer, sae, data, seed)
        read_base(parts)
        before = args.results / f"base-{seed}.json"
        if not before.exists():
            _write(before, {"method": "base", "seed": seed, **measure(parts, model)})
        start = time.monotonic()
        scale = 1.0
        tuned, keeper, facts = train(parts, method, scale)
        while not keeper.step and scale > LEAST_SCALE:  # never within the budget
            tuned.unload()
            scale /= 4
            tuned, keeper, facts = train(parts, method, scale)
        found = {"method": method, "seed": seed, "seconds_training": time.monotonic() - start, **facts}
        found["rate_scale"] = scale
        found |= {"step": keeper.step, "damage": keeper.damage, "curve": keeper.curve}
        found |= measure(parts, tuned, facts.get("latents", ())) | attack(parts, tuned)
        found["seconds"] = time.monotonic() - start
        _write(path, found)
        tuned.unload()
        del tuned, keeper
        gc.collect()


def train(parts: Parts, method: str, scale: float) -> tuple[PeftModel, DamageBudget, dict[str, Any]]:
    """A tuned model within the budget; `scale` multiplies the learning rate."""
    torch.manual_seed(parts.seed)
    data = parts.data
    row = parts.tokenizer(data.retain[0]).input_ids
    with adapter_on(parts.model, None, parts.sae.layer, row) as model:  # the same LoRA for every method
        pass
    aside, known = data.known_train[:VALIDATION], data.known_train[VALIDATION:]
    texts, retain = data.retain[:8], data.retain[8:]
    rows = _rows(aside, TRAINED_QUESTIONS[:1]) + _rows(aside, QUESTIONS[1:])
    batches = [encode(parts.tokenizer, rows), encode(parts.tokenizer, [Row(text, "") for text in texts], 40)]
    keeper = DamageBudget(model, batches, BUDGET, EVERY if method in OURS else BASELINE_EVERY, give_up=3.0)
    keeper(0, model)
    facts: dict[str, Any] = {}
    if method in OURS:
        facts = _align(parts, model, {"learning_rate": RATE * scale, **OURS[method]}, known, retain, keeper)
    else:
        options = dict(BASELINES[method])
        name, rate = options.pop("method"), options.pop("learning_rate")
        if name == "rmu":
            options["layer"] = parts.sae.layer
        kept = _rows(known, TRAINED_QUESTIONS) + [Row(text[:160], "") for text in retain]
        forgotten = _rows(data.targets, TRAINED_QUESTIONS)
        train_baseline(
            model,
            parts.tokenizer,
            get_method(name, **options),
            forgotten,
            kept,
            BASELINE_STEPS,
            rate * scale,
            seed=parts.seed,
            batch_size=BASELINE_BATCH,
            max_length=40,
            on_step=lambda step, model: step > 0 and keeper(step, model),
        )
    keeper.restore(model)
    return model.eval(), keeper, facts


def _align(
    parts: Parts,
    model: PeftModel,
    options: dict[str, Any],
    known: EntitySet,
    retain: Sequence[str],
    keeper: DamageBudget,
) -> dict[str, Any]:
    options = dict(options)
    sae = options.pop("sae", parts.sae)
    with tempfile.TemporaryDirectory() as folder:
        settings = SAEAlignmentConfig(
            output_dir=folder,
            init="zero",
            layer=parts.sae.layer,
            max_steps=STEPS,
            per_device_train_batch_size=10,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            retain_max_length=40,
            retain_positions=6,
            questions={"city": {"country": TRAINED_QUESTIONS}},
            max_reference_entities=120,
            min_separation=0.0,  # reported instead
            save_strategy="no",
            report_to=[],
            use_cpu=next(model.parameters()).device.type == "cpu",
            disable_tqdm=True,
            logging_strategy="no",
            seed=parts.seed,
            **options,
        )
        trainer = SAEAlignmentTrainer(
            model=model,
            args=settings,
            sae=sae,
            processing_class=parts.tokenizer,
            train_dataset=parts.data.targets,
            known=known,
            unknown=parts.data.unknown_train,
            retain_dataset=list(retain),
            callbacks=[BudgetCallback(keeper)],
        )
        trainer.train()
    keeper.restore(model)
    latents = trainer.latents
    return {
        "portrait": trainer.portrait().to_dict(),
        "separation": trainer.separation.to_dict(),
        "latents": [] if latents is None else [*latents.known, *latents.unknown],
    }


def _rows(cities: Sequence[Entity], questions: Sequence[str]) -> list[Row]:
    return [Row(fact.prompt, fact.answers[0]) for question in questions for fact in question_facts(cities, question)]


def _write(path: Path, found: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)
    print(path, found.get("step"), found.get("damage"), found.get("seconds"), flush=True)


if __name__ == "__main__":
    main()
