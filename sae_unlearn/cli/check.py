"""`sae-unlearn check`."""

import argparse

from sae_unlearn.cli.inputs import add_model_arguments


HELP = "does a guardrail belong to a model, is its dose enough, does its gate fire where it should"
EXAMPLES = """examples:
  sae-unlearn check demo sae-unlearn-demo/forget-biology
  sae-unlearn check google/gemma-2-2b-it forget-biology --forget questions.txt --retain traffic.jsonl
  sae-unlearn check google/gemma-2-2b-it forget-all --subfolder biology

exit code: 0 without problems (warnings are none), 1 with problems, 2 for bad input
"""
_MARKS = {"ok": "ok      ", "warning": "WARNING ", "problem": "PROBLEM "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder of the model, or demo")
    parser.add_argument("source", metavar="FOLDER", help="folder or Hub id of the guardrail, or of a bundle")
    add_model_arguments(parser)
    parser.add_argument("--guardrail-revision", help="branch, tag or commit of the guardrail")
    parser.add_argument("--subfolder", help="folder inside it: a member of a bundle")
    parser.add_argument("--forget", help="text of the topic (default: the rows stored in the guardrail)")
    parser.add_argument("--retain", help="other text (default: neutral paragraphs that this package ships)")
    parser.add_argument("--forget-split", help="split of the dataset (default train)")
    parser.add_argument("--retain-split", help="split of the dataset (default train)")
    parser.add_argument("--text-column", default="text", help="column or key that holds the text (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per forward pass (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.inputs import load_model, read_texts
    from sae_unlearn.demo import load_demo_texts
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.check import check_guardrail
    from sae_unlearn.guardrail.storage.bundle_index import BundleGiven
    from sae_unlearn.guardrail.storage.reading import read_config

    hub = {"revision": args.guardrail_revision, "subfolder": args.subfolder}
    try:
        read_config(args.source, **hub)  # a wrong name is told before the model is loaded
    except BundleGiven as found:
        raise ValueError(f"check looks at one guardrail; give --subfolder too. {found}") from found
    forget = read_texts(args.forget, args.text_column, args.forget_split) if args.forget else None
    if args.retain:
        retain = read_texts(args.retain, args.text_column, args.retain_split)
    else:
        retain = load_demo_texts().heldout["retain"]
    model, tokenizer = load_model(args.model, args.revision, args.device, args.dtype)
    report = check_guardrail(
        model,
        args.source,
        tokenizer,
        forget,
        retain,
        text_column=args.text_column,
        batch_size=args.batch_size,
        **hub,
    )
    for finding in report.findings:
        print(f"{_MARKS[finding.status]} {printable(finding.subject + ': ' + finding.sentence, limit=600)}")
    if not args.retain:
        print("(other text: the neutral paragraphs that this package ships; give your own by --retain)")
    problems = sum(finding.status == "problem" for finding in report.findings)
    print("No problems." if report.ok else f"{problems} problem(s).")
    return 0 if report.ok else 1
