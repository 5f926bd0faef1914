"""The command `sae-unlearn train`: arguments and run."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.arguments import (
    Parser,
    add_model_arguments,
    add_options,
    add_output_argument,
    add_sae_arguments,
    options_from,
)
from sae_unlearn.cli.data_sets import DATA, add_column_argument
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.field import options_of
from sae_unlearn.options.train import TrainOptions


if TYPE_CHECKING:
    from sae_unlearn.alignment import EntitySet, SAEAlignmentTrainer


HELP = "train a LoRA that makes entities look unknown to a model"
EXAMPLES = """examples:
  sae-unlearn train --model google/gemma-2-2b-it \\
      --sae google/gemma-scope-2b-pt-res --sae-subfolder layer_12/width_16k/average_l0_82 \\
      --targets people.json --known known.json --unknown unknown.json --output forget-people
  sae-unlearn train --model demo --sae demo --targets cities.json --candidates more.csv --output forget-cities

entities: .json, .jsonl or .csv, with entity, entity_type, and their attributes. With --candidates the model labels
which of them it knows (needs attributes); with --known and --unknown you label them.

several processes: accelerate launch --num_processes 4 -m sae_unlearn train ...
"""

_NOT_OF_THE_CONFIG = ("batch_size", "lora_rank", "resume", "min_known", "eval_steps", "save_steps")


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    add_sae_arguments(parser, "Hub id or folder of an SAE of one of the model's layers, demo, or none (raw states)")
    add = parser.group(DATA).add_argument
    add("--targets", required=True, metavar="FILE", help="entities to forget")
    add("--known", metavar="FILE", help="entities of the same types that the model knows and must keep")
    add("--unknown", metavar="FILE", help="entities of the same types that it does not know")
    add("--candidates", metavar="FILE", help="entities for the model to label, instead of --known and --unknown")
    add("--entity-type", metavar="TYPE", help="type of entities whose file does not name it")
    add("--retain", nargs="+", metavar="DATA", help="ordinary texts on which predictions are kept, as for fit")
    add_column_argument(parser)
    add_options(parser, TrainOptions)
    add_output_argument(parser, "folder for the LoRA, its card and its picture")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.outputs import not_left_empty, output_folder

    if not args.candidates and not (args.known and args.unknown):
        raise UnlearnError("Pass --known and --unknown, or --candidates to have the model label them.")
    options = options_from(args, TrainOptions)
    output = output_folder(args.output)
    with not_left_empty(output):  # transformers' Trainer creates it
        return _train(args, options, output)


def _train(args: argparse.Namespace, options: TrainOptions, output: Path) -> int:
    from transformers.trainer_callback import PrinterCallback

    from sae_unlearn.alignment import EntitySet
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cli.data_sets import texts_in
    from sae_unlearn.cli.inputs import load_model, load_sae

    read = {name: getattr(args, name) for name in ("targets", "known", "unknown", "candidates")}
    sets = {name: EntitySet.from_file(path, args.entity_type) for name, path in read.items() if path}
    retain = texts_in(args.retain, args.text_column) if args.retain else None
    sae = None if args.sae == "none" else load_sae(args.sae, args.sae_subfolder, args.sae_revision, model=args.model)
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    if "candidates" in sets:
        from sae_unlearn.alignment import label_entities

        labeled = label_entities(
            model,
            tokenizer,
            sets["candidates"].without(sets["targets"]),
            min_known=options.min_known,
            chat_template=options.chat_template,
            cache=output / "answers.jsonl",
            progress=args.progress,
        )
        if process_index() == 0:
            print(_labels(labeled.summary()))
        sets = {"known": labeled.known, "unknown": labeled.unknown} | sets
    trainer = _trainer(options, args.progress, output, sets, retain, sae, model, tokenizer)
    trainer.remove_callback(PrinterCallback)  # it prints raw logs without a progress bar
    first = trainer.is_world_process_zero()
    if first:
        print(f"Separation on held-out entities (AUC): {trainer.separation.both:.3f}")
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=options.resume or None)
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


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    given = ["--model", args.model, "--adapter", Path(args.output).as_posix(), "--forget", "QUESTIONS"]
    return shlex.join(["sae-unlearn", "evaluate", *given, "--compare", "--output", "report"])


def _trainer(
    options: TrainOptions,
    progress: bool,
    output: Any,
    sets: "dict[str, EntitySet]",
    retain: Any,
    sae: Any,
    model: Any,
    tokenizer: Any,
) -> "SAEAlignmentTrainer":
    from peft import LoraConfig

    from sae_unlearn.alignment import SAEAlignmentConfig, SAEAlignmentTrainer

    own = {each.name: getattr(options, each.name) for each in options_of(TrainOptions) if each.command_line}
    given = {name: value for name, value in own.items() if name not in _NOT_OF_THE_CONFIG}
    given["per_device_train_batch_size"] = options.batch_size
    steps = options.init == "zero" or options.max_steps > 0
    if options.eval_steps is not None or (steps and options.retain_budget is not None):
        given |= {"eval_strategy": "steps", "eval_steps": options.eval_steps or 10}
    saving = {"save_strategy": "steps", "save_steps": options.save_steps} if options.save_steps else {}
    given |= saving or {"save_strategy": "no"}
    settings = SAEAlignmentConfig(
        str(output), report_to=[], disable_tqdm=not progress, use_cpu=model.device.type == "cpu", **given
    )
    lora = None
    if options.lora_rank is not None:
        lora = LoraConfig(
            r=options.lora_rank, lora_alpha=2 * options.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
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
    """Return a table of how many candidates the model knows, and how often its answers match."""
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
        ("eval_way_left", "part of the way to unknown entities that is left"),
        ("eval_variance_ratio", "variance over that of unknown entities"),
        ("eval_toward", "distance to unknown entities"),
        ("eval_kl", "KL to the base on held-out retain rows, nats per token"),
    ):
        if key in after:
            rows.append([title, f"{before[key]:.3f}", f"{after[key]:.3f}"])
    return table(rows)


def _picture(trainer: "SAEAlignmentTrainer", output: Path) -> str:
    """Draw the picture and return its path. Call it before the card is saved, which then shows it."""
    from sae_unlearn.alignment.plot import PICTURE, draw_portrait

    try:
        draw_portrait(trainer.portrait(), output / PICTURE)
    except ImportError as error:
        return f"no picture: {error}"
    return str(output / PICTURE)
