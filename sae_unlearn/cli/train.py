"""`sae-unlearn train`."""

import argparse
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.inputs import add_model_arguments


if TYPE_CHECKING:
    from pathlib import Path

    from sae_unlearn.alignment import EntitySet, SAEAlignmentTrainer

HELP = "train a LoRA that makes entities look unknown to a model"
EXAMPLES = """examples:
  sae-unlearn train --model google/gemma-2-2b-it \\
      --sae google/gemma-scope-2b-pt-res --sae-subfolder layer_12/width_16k/average_l0_82 \\
      --targets people.json --known known.json --unknown unknown.json --output forget-people
  sae-unlearn train --model demo --sae demo --targets cities.json --candidates more.csv --output forget-cities

entities: .json, .jsonl or .csv, with entity, entity_type, and their attributes. With --candidates the model itself is
asked which of them it knows (needs attributes); with --known and --unknown you say it.

several processes: accelerate launch --num_processes 4 -m sae_unlearn train ...
"""

# What `SAEAlignmentConfig` has by default too; its tests hold the two together.
DEFAULTS: dict[str, Any] = {
    "preset": "default",
    "learning_rate": 5e-4,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 10,
    "min_separation": 0.8,
    "seed": 42,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="Hub id or folder of a causal language model, or demo")
    add_model_arguments(parser)
    add("--sae", required=True, help="Hub id or folder of an SAE of one of its layers, demo, or none (raw states)")
    add("--sae-subfolder", help="folder inside the SAE's repository")
    add("--sae-revision", help="branch, tag or commit of the SAE")
    add("--targets", required=True, help="file of the entities to forget")
    add("--known", help="file of entities of the same types that the model knows and is to keep")
    add("--unknown", help="file of entities of the same types that it does not know")
    add("--candidates", help="file of entities to ask the model about, instead of --known and --unknown")
    add("--min-known", type=int, help="attributes that a known candidate has right (default 2; 1 if none has more)")
    add("--entity-type", help="type of entities whose file does not say it")
    add("--retain", help="ordinary text to keep predictions on: .txt, .json, .jsonl, .csv, or a dataset")
    add("--output", required=True, help="folder for the LoRA, its card and its picture")
    add("--layer", type=int, help="0-based layer to align (default: the SAE's)")
    add("--preset", choices=("default", "centroid"), help=f"of the loss (default {DEFAULTS['preset']})")
    add("--learning-rate", type=float, help=f"default {DEFAULTS['learning_rate']:g}")
    add("--num-train-epochs", type=float, help=f"default {DEFAULTS['num_train_epochs']:g}")
    add("--max-steps", type=int, help="optimiser steps, instead of epochs")
    add("--batch-size", type=int, dest="per_device_train_batch_size", help="targets in a step (default 10)")
    add("--lora-rank", type=int, help="default 8")
    add("--retain-budget", type=float, help="stop above this KL on held-out retain rows, nats per token")
    add("--eval-steps", type=int, help="evaluate every so many steps (default with a budget: 10)")
    add("--min-separation", type=float, help=f"refuse below this AUC (default {DEFAULTS['min_separation']})")
    add("--chat-template", action="store_true", default=None, help="put prompts into the tokenizer's chat template")
    add("--seed", type=int, help=f"default {DEFAULTS['seed']}")
    add("--resume", action="store_true", help="go on from the last checkpoint in --output")
    add("--save-steps", type=int, help="write a checkpoint every so many steps (default: none)")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.inputs import not_left_empty, output_folder

    if not args.candidates and not (args.known and args.unknown):
        raise ValueError("Give --known and --unknown, or --candidates, of which the model itself says which it knows.")
    output = output_folder(args.output)
    with not_left_empty(output):  # transformers' Trainer makes it
        return _train(args, output)


def _train(args: argparse.Namespace, output: "Path") -> int:
    from transformers.trainer_callback import PrinterCallback

    from sae_unlearn.alignment import EntitySet
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cli.inputs import load_model, load_sae, read_texts

    read = {name: getattr(args, name) for name in ("targets", "known", "unknown", "candidates")}
    sets = {name: EntitySet.read(path, args.entity_type) for name, path in read.items() if path}
    retain = list(read_texts(args.retain)) if args.retain else None
    sae = None if args.sae == "none" else load_sae(args.sae, args.sae_subfolder, args.sae_revision)
    model, tokenizer = load_model(args.model, args.revision, args.device, args.dtype)
    if "candidates" in sets:
        from sae_unlearn.alignment import label_entities

        labelled = label_entities(
            model,
            tokenizer,
            sets["candidates"].without(sets["targets"]),
            min_known=args.min_known,
            chat_template=bool(args.chat_template),
            cache=output / "answers.jsonl",
            progress=args.progress,
        )
        if process_index() == 0:
            print(_labels(labelled.summary()))
        sets = {"known": labelled.known, "unknown": labelled.unknown} | sets
    trainer = _trainer(args, output, sets, retain, sae, model, tokenizer)
    trainer.remove_callback(PrinterCallback)  # which prints raw logs where there is no progress bar
    first = trainer.is_world_process_zero()
    if first:
        print(f"Separation on held-out entities (AUC): {trainer.separation.both:.3f}")
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=args.resume or None)
    after = trainer.evaluate()
    picture = "no picture: the model is sharded"
    if first and not trainer.is_fsdp_enabled:
        picture = _picture(trainer, output)
    trainer.save_model(str(output))
    if not first:
        return 0
    print("\n" + _report(before, after))
    print(f"\nWritten to {output}: a PEFT LoRA and its card (README.md); {picture}")
    return 0


def _trainer(
    args: argparse.Namespace,
    output: Any,
    sets: "dict[str, EntitySet]",
    retain: Any,
    sae: Any,
    model: Any,
    tokenizer: Any,
) -> "SAEAlignmentTrainer":
    from peft import LoraConfig

    from sae_unlearn.alignment import SAEAlignmentConfig, SAEAlignmentTrainer

    names = (*DEFAULTS, "layer", "max_steps", "retain_budget", "chat_template")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.retain_budget is not None or args.eval_steps is not None:
        options |= {"eval_strategy": "steps", "eval_steps": args.eval_steps or 10}
    options |= {"save_strategy": "steps", "save_steps": args.save_steps} if args.save_steps else {"save_strategy": "no"}
    settings = SAEAlignmentConfig(
        str(output), report_to=[], disable_tqdm=not args.progress, use_cpu=model.device.type == "cpu", **options
    )
    lora = None
    if args.lora_rank is not None:
        lora = LoraConfig(
            r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    return SAEAlignmentTrainer(
        model=model,
        args=settings,
        sae=sae,
        processing_class=tokenizer,
        peft_config=lora,
        train_dataset=sets["targets"],
        known=sets["known"].without(sets["targets"]),
        unknown=sets["unknown"].without(sets["targets"]),
        retain_dataset=retain,
    )


def _labels(summary: dict[str, Any]) -> str:
    """How many candidates the model knows, and how often its answers about them match."""
    from sae_unlearn.files.terminal import printable, table

    labels = ("known", "unknown", "dropped")
    rows = [["candidates", *labels]]
    for entity_type, found in summary.items():
        rows.append([printable(entity_type), *(str(found[label]) for label in labels)])
        for attribute, asked in found["attributes"].items():
            rates = [asked["match_rate"].get(label) for label in labels]
            shown = ["" if rate is None else f"{rate:.0%}" for rate in rates]
            rows.append([f"  {printable(attribute)}: answers that match", *shown])
    return table(rows)


def _report(before: dict[str, float], after: dict[str, float]) -> str:
    from sae_unlearn.files.terminal import table

    rows = [["targets, in templates that training never used", "before", "after"]]
    for key, title in (
        ("eval_known_auc", "looks more known than an unknown entity (AUC; 0.5: indistinguishable)"),
        ("eval_variance_ratio", "variance over that of unknown entities"),
        ("eval_toward", "distance to unknown entities"),
        ("eval_kl", "KL to the base on held-out retain rows, nats per token"),
    ):
        if key in after:
            rows.append([title, f"{before[key]:.3f}", f"{after[key]:.3f}"])
    return table(rows)


def _picture(trainer: "SAEAlignmentTrainer", output: "Path") -> str:
    """Draws the picture, which the card shows if it is there when the card is written."""
    from sae_unlearn.alignment.plot import PICTURE, draw_portrait

    try:
        draw_portrait(trainer.portrait(), output / PICTURE)
    except ImportError as error:
        return f"no picture: {error}"
    return str(output / PICTURE)
