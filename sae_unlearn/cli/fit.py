"""`sae-unlearn fit`."""

import argparse
from typing import Any

from sae_unlearn.cli.inputs import add_model_arguments


HELP = "fit a guardrail on a model, an SAE and two sets of text"
EXAMPLES = """examples:
  sae-unlearn fit --model google/gemma-2-2b-it \\
      --sae google/gemma-scope-2b-pt-res --sae-subfolder layer_3/width_16k/average_l0_142 \\
      --forget biology.txt --retain other.jsonl --chat-template --output forget-biology
  sae-unlearn fit --model demo --sae demo --forget topic.txt --retain rest.txt --output forget-topic
  sae-unlearn fit --model demo --sae demo --features 12,406,981 --threshold 0.6 --clamp-value -500 --output by-hand

several processes: accelerate launch --num_processes 4 -m sae_unlearn fit ...

texts: a .txt file (paragraphs between blank lines), .json, .jsonl or .csv (see --text-column), or a dataset of the
Hub or in a folder (needs the package `datasets`; see --forget-split)
"""

# What `fit_guardrail` has by default too; its tests hold the two together.
DEFAULTS: dict[str, Any] = {
    "statistic": "ratio",
    "gate_scope": "sequence",
    "clamp_unit": "residual",
    "max_length": 512,
    "batch_size": 8,
    "text_column": "text",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="Hub id or folder of a causal language model, or demo")
    add_model_arguments(parser)
    add("--sae", required=True, help="Hub id or folder of an SAE of one of its layers, or demo")
    add("--sae-subfolder", help="folder inside the SAE's repository")
    add("--sae-revision", help="branch, tag or commit of the SAE")
    add("--forget", help="text of the topic; 100 paragraphs are a good start")
    add("--retain", help="other text, as the model will meet it, near neighbours of the topic included")
    add("--forget-split", help="split of the dataset (default train)")
    add("--retain-split", help="split of the dataset (default train)")
    add("--text-column", help="column or key that holds the text" + _default("text_column"))
    add("--output", required=True, help="folder for the adapter, its card and its picture")
    add("--layer", type=int, help="0-based layer whose output is guarded (default: the SAE's)")
    add("--num-features", type=int, help="how many features are guarded (default 40, faithful 20)")
    add("--ratio-percentile", type=float, help="of forget/retain ratios, to be chosen (default 99, faithful 95)")
    add("--threshold-percentile", type=float, help="of the retain rows (default 97.5, faithful 95)")
    add("--margin", type=float, help="from there towards the forget rows' lower quartile (default 0.25, faithful 0)")
    add("--features", type=_features, metavar="ID,ID,...", help="feature ids, instead of choosing them")
    add("--threshold", type=float, help="threshold of the gate, instead of measuring it")
    add("--clamp-unit", choices=("feature", "residual", "absolute"), help="unit of the dose" + _default("clamp_unit"))
    add("--clamp-scale", type=float, help="dose in that unit (default 0.5 residual norms)")
    add("--clamp-value", type=float, help="the paper's absolute dose, such as -500")
    add(
        "--statistic",
        choices=("ratio", "window", "cusum", "ratio_or_window"),
        help="what the gate watches" + _default("statistic"),
    )
    add(
        "--evidence",
        choices=("any", "log_ratio"),
        help="how hot a token is (default log_ratio; any with --threshold, --preset faithful, or without texts)",
    )
    add("--gate-scope", choices=("sequence", "prefix"), help="what a decision holds for" + _default("gate_scope"))
    add("--preset", choices=("faithful",), help="the published procedure: scores, counting, clamp, use of rows")
    add("--topk", choices=("threshold",), help="approximate the features of a topk SAE, and measure how well")
    add("--chat-template", action="store_true", default=None, help="put texts into the tokenizer's chat template")
    add("--max-length", type=int, help="longer texts are cut into rows of so many tokens" + _default("max_length"))
    add("--batch-size", type=int, help="rows per forward pass" + _default("batch_size"))
    add("--checkpoint-dir", help="folder to write progress into; the same command goes on from there after a kill")
    add(
        "--store-probe",
        action="store_true",
        default=None,
        help="keep four rows of your text, for check; publishes them",
    )


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB
    from sae_unlearn.cli.inputs import load_model, load_sae, output_folder, read_texts
    from sae_unlearn.cli.show import describe
    from sae_unlearn.guardrail import fit_guardrail
    from sae_unlearn.guardrail.layout import PICTURE

    output = output_folder(args.output)
    column = args.text_column or DEFAULTS["text_column"]
    forget = read_texts(args.forget, column, args.forget_split) if args.forget else None
    retain = read_texts(args.retain, column, args.retain_split) if args.retain else None
    sae = load_sae(args.sae, args.sae_subfolder, args.sae_revision)
    model, tokenizer = load_model(args.model, args.revision, args.device, args.dtype)
    names = (*DEFAULTS, "num_features", "ratio_percentile", "threshold_percentile", "margin", "layer", "features")
    names += ("threshold", "evidence", "clamp_scale", "clamp_value", "preset", "topk")
    names += ("chat_template", "store_probe", "checkpoint_dir")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    guarded = fit_guardrail(model, tokenizer, sae, forget, retain, progress=args.progress, **options)
    if process_index() > 0:  # all processes of a launch end with the same guardrail
        return 0
    guarded.save_pretrained(output)
    picture = str(output / PICTURE)
    if not (output / PICTURE).is_file():
        measured = (next(iter(guarded.peft_config.values())).calibration or {}).get("statistic_retain")
        picture = f"no picture: {NO_MATPLOTLIB if measured else 'nothing was measured'}"
    print(describe(output))
    print(f"\nWritten to {output}: the adapter and its card (README.md); {picture}")
    return 0


def _default(name: str) -> str:
    return f" (default {DEFAULTS[name]})"


def _features(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.replace(" ", "").split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids such as 12,406,981") from error
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids such as 12,406,981")
    return found
