"""`sae-unlearn audit`."""

import argparse
from typing import Any

from sae_unlearn.cli.inputs import add_adapter_arguments, add_model_arguments


HELP = "what an attacker gets back of what a model should have forgotten, and what is blocked that should not be"
EXAMPLES = """examples:
  sae-unlearn audit --model google/gemma-2-2b-it --adapter forget-biology --forget wmdp:bio --retain mmlu:astronomy \\
      --neighbours mmlu:college_chemistry --chat-template --limit 100 --output audit --card forget-biology
  sae-unlearn audit --model demo --adapter sae-unlearn-demo/forget-biology --forget questions.json \\
      --retain other.json --neighbours chemistry.txt --attacks dilution splitting --output audit

data: as for evaluate. What is attacked are questions: facts (prompt, answers) or choices (question, choices, answer);
neighbours may be texts as well.
"""

# What `audit` has by default too; its tests hold the two together.
DEFAULTS: dict[str, Any] = {"lengths": (16, 64, 256), "steps": (0, 10, 40), "seed": 0, "batch_size": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    shown = {name: " ".join(map(str, value)) for name, value in DEFAULTS.items() if isinstance(value, tuple)}
    add("--model", required=True, help="Hub id or folder of a causal language model, or demo")
    add_model_arguments(parser)
    add_adapter_arguments(parser)
    add("--forget", nargs="+", required=True, metavar="DATA", help="questions on what should be forgotten")
    add("--retain", nargs="+", default=[], metavar="DATA", help="questions on other things: the control")
    add("--neighbours", nargs="+", default=[], metavar="DATA", help="harmless questions or texts near the topic")
    add("--unnamed", nargs="+", default=[], metavar="DATA", help="questions that name nothing of the topic")
    add("--names", nargs="+", default=[], metavar="NAME", help="what --unnamed may not name")
    add("--unknown", nargs="+", default=[], metavar="DATA", help="facts that the base does not know, for relearning")
    add("--attacks", nargs="+", metavar="ATTACK", help="which ones (default: all for which there is data)")
    add("--filler", metavar="TEXTS", help="harmless texts for dilution (default: some of this package)")
    add("--lengths", nargs="+", type=int, metavar="N", help=f"words of filler (default {shown['lengths']})")
    add("--steps", nargs="+", type=int, metavar="N", help=f"of relearning (default {shown['steps']})")
    add("--layer", type=int, help="for direction (default: the last guarded one, or else the middle)")
    add("--text-column", default="text", help="column or key that holds a text (default %(default)s)")
    add("--limit", type=int, help="at most so many rows of each set, drawn with a fixed seed")
    add("--output", required=True, help="folder for the report: tables, curves, JSON")
    add("--card", metavar="FOLDER", help="folder of the adapter, whose card takes the results too")
    add("--seed", type=int, help=f"of what attacks draw (default {DEFAULTS['seed']})")
    add("--batch-size", type=int, help=f"rows per forward pass (default {DEFAULTS['batch_size']})")
    add("--max-new-tokens", type=int, help="of completions (default: as the longest answer needs)")
    add("--chat-template", action="store_true", default=None, help="put prompts into the tokenizer's chat template")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from sae_unlearn.cards.card import CARD_NAME
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB
    from sae_unlearn.cli.evaluate import read_sets, with_adapter
    from sae_unlearn.cli.inputs import NO_ADAPTER, load_model, output_folder, read_texts
    from sae_unlearn.evaluation import audit, put_into_card

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}; expected at least 1.")
    if args.subfolder and not args.adapter:
        raise ValueError(NO_ADAPTER)
    if args.card and not (Path(args.card) / CARD_NAME).is_file():
        raise FileNotFoundError(f"--card {args.card}: there is no {CARD_NAME}; give the folder of a saved adapter.")
    output = output_folder(args.output)
    sides = ("forget", "retain", "neighbours", "unnamed", "unknown")
    sets: dict[str, Any] = {
        side: read_sets(getattr(args, side), args.text_column, args.limit) or None for side in sides
    }
    names = (*DEFAULTS, "attacks", "layer", "max_new_tokens", "chat_template")
    options: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.filler:
        filler = read_texts(args.filler, args.text_column)
        options["filler"] = [row[args.text_column] if isinstance(row, dict) else row for row in filler]
    model, tokenizer = load_model(args.model, args.revision, args.device, args.dtype)
    where = {"revision": args.adapter_revision, "subfolder": args.subfolder}
    adapted = with_adapter(model, args.adapter, **where) if args.adapter else model
    report = audit(adapted, tokenizer, **sets, names=args.names, progress=args.progress, **options)
    written = report.save(output)
    if args.card:
        written.append(put_into_card(report, args.card))
    print(report.to_markdown())
    print(f"Written to {output}: {', '.join(path.name for path in written if path.parent == output)}")
    if args.card:
        print(f"The card {written[-1]} has the results.")
    if not any(path.suffix == ".png" for path in written):
        print(f"(no picture: {NO_MATPLOTLIB})")
    return 0
