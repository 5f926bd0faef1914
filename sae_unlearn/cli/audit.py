"""The command `sae-unlearn audit`: arguments and run."""

import argparse
import shlex
from typing import Any

from sae_unlearn.cli.arguments import (
    Parser,
    add_adapter_arguments,
    add_model_arguments,
    add_options,
    add_output_argument,
    options_from,
)
from sae_unlearn.cli.data_sets import DATA, add_column_argument, add_drawing_arguments
from sae_unlearn.options.evaluation import AuditConfig


HELP = "measure how much forgotten knowledge attacks recover, and the false positives"
EXAMPLES = """examples:
  sae-unlearn audit --model google/gemma-2-2b-it --adapter forget-biology --forget wmdp:bio --retain mmlu:astronomy \\
      --neighbors mmlu:college_chemistry --chat-template --limit 100 --output audit --card forget-biology
  sae-unlearn audit --model demo --adapter sae-unlearn-demo/forget-biology --forget questions.json \\
      --retain other.json --neighbors chemistry.txt --attacks dilution splitting --output audit

data: as for evaluate. Attacks need questions: facts (prompt, answers) or choices (question, choices, answer). Neighbors
may also be texts.
"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    add_adapter_arguments(parser)
    add = parser.group(DATA).add_argument
    add("--forget", nargs="+", required=True, metavar="DATA", help="questions on the topic to forget")
    add("--retain", nargs="+", default=[], metavar="DATA", help="questions on other topics, as control")
    add("--neighbors", nargs="+", default=[], metavar="DATA", help="harmless questions or texts near the topic")
    add("--unnamed", nargs="+", default=[], metavar="DATA", help="questions on the topic that do not name it")
    add("--names", nargs="+", default=[], metavar="NAME", help="names that --unnamed must not contain")
    add("--unknown", nargs="+", default=[], metavar="DATA", help="facts that the base does not know, for relearning")
    add("--filler", nargs="+", metavar="DATA", help="harmless texts for dilution (default: texts of this package)")
    add_column_argument(parser)
    add_drawing_arguments(parser, seed=False)
    add_options(parser, AuditConfig)
    add_output_argument(parser, "folder for the report: tables, curves, JSON")
    parser.group("output").add_argument(
        "--card", metavar="FOLDER", help="folder of the adapter, to add the results to its card"
    )


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from sae_unlearn.cards.card import CARD_NAME
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.data_sets import read_sets, texts_in
    from sae_unlearn.cli.inputs import load_model, with_adapter
    from sae_unlearn.cli.outputs import output_folder
    from sae_unlearn.evaluation import add_to_card, audit

    where = hub_of(args)
    if args.card and not (Path(args.card) / CARD_NAME).is_file():
        raise FileNotFoundError(f"--card {args.card}: expected a folder with a {CARD_NAME}, of a saved adapter.")
    config = options_from(args, AuditConfig, progress=args.progress)
    output = output_folder(args.output)
    sides = ("forget", "retain", "neighbors", "unnamed", "unknown")
    given: dict[str, Any] = {
        side: read_sets(getattr(args, side), args.text_column, args.limit, args.seed) or None for side in sides
    }
    if args.filler:
        given["filler"] = texts_in(args.filler, args.text_column)
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    adapted = with_adapter(model, args.adapter, **where) if args.adapter else model
    report = audit(adapted, tokenizer, names=args.names, config=config, **given)
    written = report.save(output)
    if args.card:
        written.append(add_to_card(report, args.card))
    print(report.to_markdown())
    print(f"Written to {output}: {', '.join(path.name for path in written if path.parent == output)}")
    if args.card:
        print(f"The card {written[-1]} has the results.")
    if not any(path.suffix == ".png" for path in written):
        print(f"(no picture: {NO_MATPLOTLIB})")
    return 0


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    if args.adapter is None:
        return "sae-unlearn fit --help"
    inside = ["--adapter-subfolder", args.adapter_subfolder] if args.adapter_subfolder else []
    return shlex.join(["sae-unlearn", "check", "--model", args.model, "--adapter", args.adapter, *inside])
