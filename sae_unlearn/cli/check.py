"""The command `sae-unlearn check`: arguments and run."""

import argparse
import shlex

from sae_unlearn.cli.arguments import Parser, add_adapter_arguments, add_model_arguments
from sae_unlearn.cli.data_sets import DATA, add_column_argument, add_text_arguments


HELP = "check that a guardrail matches a model, that its dose is large enough, and on which texts its gate fires"
EXAMPLES = """examples:
  sae-unlearn check demo sae-unlearn-demo/forget-biology
  sae-unlearn check google/gemma-2-2b-it forget-biology --forget questions.txt --retain traffic.jsonl
  sae-unlearn check google/gemma-2-2b-it forget-all --adapter-subfolder biology

exit code: 0 without problems (warnings do not count), 1 with problems, 2 for bad input
"""
_MARKS = {"ok": "ok      ", "warning": "WARNING ", "problem": "PROBLEM "}


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, positional=True)
    add_adapter_arguments(parser, "folder or Hub id of the guardrail, or of a bundle", positional=True)
    add_text_arguments(
        parser,
        forget="texts of the topic (default: the rows stored in the guardrail)",
        retain="other texts (default: neutral paragraphs of this package)",
    )
    data = parser.group(DATA)
    add_column_argument(parser)
    data.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows per forward pass (default: 8)")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.data_sets import texts_of
    from sae_unlearn.cli.inputs import load_model
    from sae_unlearn.demo import load_demo_texts
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.check import check_guardrail
    from sae_unlearn.guardrail.storage.bundle_index import BundleGiven
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    try:
        folder.config()  # report a wrong name before the model is loaded
    except BundleGiven as found:
        raise ValueError(f"Pass --adapter-subfolder: check reads one guardrail. {found}.") from found
    forget, retain = texts_of(args, "forget"), texts_of(args, "retain")
    if retain is None:
        retain = load_demo_texts().heldout["retain"]
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    report = check_guardrail(
        model,
        folder,
        tokenizer,
        forget,
        retain,
        text_column=args.text_column,
        batch_size=args.batch_size,
    )
    for finding in report.findings:
        print(f"{_MARKS[finding.status]} {printable(finding.subject + ': ' + finding.sentence, limit=600)}")
    if not args.retain:
        print("(other text: neutral paragraphs of this package; pass your own with --retain)")
    problems = sum(finding.status == "problem" for finding in report.findings)
    print("No problems." if report.ok else f"{problems} problem(s).")
    return 0 if report.ok else 1


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    inside = ["--adapter-subfolder", args.adapter_subfolder] if args.adapter_subfolder else []
    given = ["--model", args.model, "--adapter", args.adapter, *inside, "--forget", "QUESTIONS", "--output", "report"]
    return shlex.join(["sae-unlearn", "evaluate", *given])
