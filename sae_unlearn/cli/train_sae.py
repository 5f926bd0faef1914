"""`sae-unlearn train-sae`."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from sae_unlearn.cli.arguments import Parser, add_model_arguments, add_options, add_output_argument, options_from
from sae_unlearn.cli.data_sets import TEXTS, add_drawing_arguments
from sae_unlearn.options.train_sae import SAETrainingConfig


HELP = "train an SAE of a model's layer on texts, and measure it"
EXAMPLES = f"""examples:
  sae-unlearn train-sae --model HuggingFaceTB/SmolLM2-135M-Instruct --texts topic.txt other.jsonl --output my-sae
  sae-unlearn train-sae --model demo --layer 9 --texts texts.txt --max-tokens 400000 --output my-sae
  sae-unlearn train-sae --model demo --texts texts.txt --estimate --output my-sae

several processes share the forward passes: accelerate launch --num_processes 4 -m sae_unlearn train-sae ...
an SAE knows the topics of its texts: give text of your topic, of its neighbors, and of everything else

{TEXTS}"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    data = parser.group("data")
    data.add_argument("--texts", nargs="+", metavar="DATA", required=True, help="texts to train and measure on")
    data.add_argument("--split", metavar="SPLIT", help="split of the dataset (default: train)")
    add_drawing_arguments(parser, seed=False)
    add_options(parser, SAETrainingConfig)
    parser.group("run").add_argument(
        "--estimate", action="store_true", help="print sizes and estimated time, and train nothing"
    )
    add_output_argument(parser, "folder for the SAE and its measures")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cli.data_sets import texts_in
    from sae_unlearn.cli.inputs import drawn, load_model
    from sae_unlearn.cli.outputs import output_folder
    from sae_unlearn.guardrail.fit.reconstruction import LEAST_EXPLAINED
    from sae_unlearn.sae.training.train import METRICS, Training
    from sae_unlearn.sae.training.trainer import sae_lens

    sae_lens()
    config = options_from(args, SAETrainingConfig, progress=args.progress)
    output = output_folder(args.output)
    if config.work_dir is not None:
        output_folder(config.work_dir, "--work-dir")
    texts = drawn(texts_in(args.texts, args.text_column, args.split), args.limit, args.seed)
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    training = Training(model, tokenizer, texts, output, config)
    plan = training.estimate()
    if process_index() == 0:
        print(plan.describe(), flush=True)
    args.layer = plan.layer
    if args.estimate:
        return 0
    try:
        training.run()
    except KeyboardInterrupt:
        print(f"\nThe same command continues from {training.folder}.", file=sys.stderr)
        raise
    if process_index() > 0:  # all processes of a launch end with the same SAE
        return 0
    metrics = json.loads((output / METRICS).read_text(encoding="utf-8"))
    print(describe(metrics))
    args.poor = metrics["held_out"]["explained_variance"] < LEAST_EXPLAINED
    if args.poor:
        print("\nIt explains less than a half of the variance of held-out text, too little for a guardrail.")
    print(f"\nWritten to {output}: the SAE in SAELens' format, and {METRICS}")
    return 0


def next_step(args: argparse.Namespace) -> str:
    """The command to run after this one."""
    if args.estimate:
        return ""
    if getattr(args, "poor", False):
        more = ["--model", args.model, "--layer", str(args.layer), "--texts", *args.texts, "MORE_TEXTS"]
        return shlex.join(["sae-unlearn", "train-sae", *more, "--output", "FOLDER"])
    given = ["--model", args.model, "--sae", Path(args.output).as_posix(), "--forget", "TOPIC", "--retain", "OTHER"]
    return shlex.join(["sae-unlearn", "fit", *given, "--output", "FOLDER"])


def describe(metrics: dict[str, Any]) -> str:
    """The measures in words."""
    held, training = metrics["held_out"], metrics["training"]
    recovered = held["loss_recovered"]
    rows = {
        "trained on": f"{training['tokens']:,} tokens, {training['steps']:,} steps",
        "explained variance": f"{held['explained_variance']:.3f}; {held['explained_variance_standardized']:.3f} "
        "with every dimension standardized",
        "L0": f"{held['l0']:.1f} of {metrics['d_sae']:,} features on an average token",
        "silent features": f"{held['silent_features']:,} on {held['tokens']:,} held-out tokens",
        "loss recovered": ("not measurable" if recovered is None else f"{recovered:.3f}")
        + f" ({held['loss']:.3f} nats, {held['loss_spliced']:.3f} with the SAE, "
        f"{held['loss_mean_ablated']:.3f} with the mean)",
        "time": f"{training['harvest_seconds']:.0f} s of forward passes, {training['training_seconds']:.0f} s of "
        "training",
    }
    width = max(map(len, rows))
    return "\n".join(["", *(f"  {name:<{width}}   {value}" for name, value in rows.items())])
