"""The command `sae-unlearn evaluate`: arguments and run."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from sae_unlearn.cli.arguments import (
    Parser,
    add_adapter_arguments,
    add_model_arguments,
    add_options,
    add_output_argument,
    options_from,
)
from sae_unlearn.cli.data_sets import DATA, add_drawing_arguments
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.evaluation import EvaluationConfig


HELP = "measure what a model knows of topics to forget and to keep, with or without an adapter"
EXAMPLES = """examples:
  sae-unlearn evaluate --model google/gemma-2-2b-it --adapter forget-biology \\
      --forget wmdp:bio --retain mmlu:college_biology mmlu:astronomy other.jsonl --chat-template --output report
  sae-unlearn evaluate --model demo --adapter sae-unlearn-demo/forget-biology --compare \\
      --forget questions.json --retain traffic.txt --output report
  sae-unlearn evaluate --model google/gemma-2-2b-it --adapter forget-all --adapter-subfolder biology \\
      --forget wmdp:bio --retain other.jsonl --output report

several processes: accelerate launch --num_processes 4 -m sae_unlearn evaluate ...

data: a name such as tofu:forget10, tofu-choices:forget10, muse:forget_qa, muse-passages:forget, muse-texts:forget,
wmdp:bio, mmlu:anatomy, rwku:forget_level2, relation:country_capital_city, each with an optional @FOLDER_OR_HUB_ID as
its source (required for relation); or a file: facts (.json, .jsonl: prompt, answers), choices (question, choices,
answer), or texts as for fit
"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    add_adapter_arguments(parser)
    parser.group("adapter").add_argument(
        "--compare", action="store_true", help="measure without the adapter, too, and show the change"
    )
    data = parser.group(DATA)
    data.add_argument("--forget", nargs="+", default=[], metavar="DATA", help="questions or texts to forget")
    data.add_argument("--retain", nargs="+", default=[], metavar="DATA", help="questions or texts to keep")
    data.add_argument(
        "--reference", metavar="REPORT", help="report of a model that never saw the forget set: adds forget quality"
    )
    add_drawing_arguments(parser)
    add_options(parser, EvaluationConfig)
    add_output_argument(parser, "folder for the report: tables, picture, JSON")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.data_sets import read_sets
    from sae_unlearn.cli.inputs import load_model, with_adapter
    from sae_unlearn.cli.outputs import output_folder
    from sae_unlearn.evaluation import Report, compare, evaluate
    from sae_unlearn.evaluation.report.report import draw_reports

    if not args.forget and not args.retain:
        raise UnlearnError("Nothing to measure. Pass --forget, --retain, or both.")
    if args.compare and not args.adapter:
        raise UnlearnError("--compare measures with and without an adapter. Pass --adapter.")
    where = hub_of(args)
    config = options_from(args, EvaluationConfig, progress=args.progress)
    output = output_folder(args.output)
    reference = Report.load(args.reference) if args.reference else None
    read = {side: getattr(args, side) for side in ("forget", "retain")}
    sets: dict[str, Any] = {
        side: read_sets(names, args.text_column, args.limit, args.seed) or None for side, names in read.items()
    }
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    before = None
    if args.compare:
        before = evaluate(model, tokenizer, reference=reference, config=config, **sets)
        if process_index() == 0:
            before.save(output / "before")
    adapted = with_adapter(model, args.adapter, **where) if args.adapter else model
    report = evaluate(adapted, tokenizer, reference=reference, config=config, **sets)
    if process_index() > 0:  # all processes of a launch end with the same report
        return 0
    written = report.save(output)
    shown = report.to_markdown()
    if before is not None:
        comparison = compare(before, report)
        written += comparison.save(output)
        for picture in (path for path in written if path.suffix == ".png"):
            draw_reports([before, report], picture)
        shown = comparison.to_markdown()
    print(shown)
    print(f"Written to {output}: {', '.join(path.name for path in written)}")
    if not any(path.suffix == ".png" for path in written):
        print(f"(no picture: {NO_MATPLOTLIB})")
    return 0


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    given = ["--model", args.model, "--adapter", args.adapter or "ADAPTER"]
    given += ["--adapter-subfolder", args.adapter_subfolder] if args.adapter_subfolder else []
    given += ["--forget", *(args.forget or ["QUESTIONS"])]
    return shlex.join(["sae-unlearn", "audit", *given, "--output", (Path(args.output) / "audit").as_posix()])
