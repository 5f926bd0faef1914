"""The command `sae-unlearn check`: arguments and run."""

import argparse
import os
import shlex
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from sae_unlearn.checks import check_integer, check_number
from sae_unlearn.cli.arguments import Parser, add_adapter_arguments, add_model_arguments
from sae_unlearn.cli.data_sets import DATA, add_column_argument, add_text_arguments
from sae_unlearn.errors import UnlearnError


if TYPE_CHECKING:
    from sae_unlearn.guardrail.check.findings import CheckReport

HELP = "check a guardrail on a model (base, dose, texts on which it fires) or, with --url, on a running server"
EXAMPLES = """examples:
  sae-unlearn check demo sae-unlearn-demo/forget-biology
  sae-unlearn check google/gemma-2-2b-it forget-biology --forget questions.txt --retain traffic.jsonl
  sae-unlearn check google/gemma-2-2b-it forget-all --adapter-subfolder biology
  sae-unlearn check --url http://localhost:8000 --adapter forget-biology --forget questions.txt

exit code: 0 without problems (warnings do not count), 1 with problems, 2 for bad input
"""
ANOTHER = {"shape", "base model", "seal", "probe", "refusal"}
"""Problems of a guardrail that does not belong to the model, or is damaged."""
NOT_SERVED = {"server", "guardrail"}
"""Problems of a server that does not answer, or does not have the guardrail."""
LEAST_RECALL = 0.9
_MARKS = {"ok": "ok      ", "warning": "WARNING ", "problem": "PROBLEM "}


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, required=False, positional=True)
    add_adapter_arguments(parser, "folder or Hub id of the guardrail, or of a bundle", positional=True)
    add_text_arguments(
        parser,
        forget="texts of the topic (default: the rows stored in the guardrail)",
        retain="other texts (default: neutral paragraphs of this package)",
    )
    data = parser.group(DATA)
    add_column_argument(parser)
    data.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows per forward pass (default: 8)")
    server = parser.group("server")
    server.add_argument("--url", help="ask a running server instead of a model, such as http://localhost:8000")
    server.add_argument("--name", help="the guardrail's name on the server (default: the last part of --adapter)")
    server.add_argument(
        "--api-key", metavar="KEY", help="key of the server (default: the environment variable OPENAI_API_KEY)"
    )
    server.add_argument("--timeout", type=float, default=120.0, metavar="X", help="seconds to wait (default: 120)")


def run(args: argparse.Namespace) -> int:
    if (args.url is None) == (args.model is None):
        raise UnlearnError("--model, --url: expected one of them. Pass a model, or the address of a server.")
    check_integer("--batch-size", args.batch_size, 1)
    check_number("--timeout", args.timeout, above=0)
    report = _check_model(args) if args.url is None else _check_server(args)
    from sae_unlearn.files.terminal import printable

    for finding in report.findings:
        print(f"{_MARKS[finding.status]} {printable(finding.subject + ': ' + finding.sentence, limit=600)}")
    if args.url is None and not args.retain:
        print("(other text: neutral paragraphs of this package; pass your own with --retain)")
    problems = sum(finding.status == "problem" for finding in report.findings)
    print("No problems." if report.ok else f"{problems} problem(s).")
    args.problems = {finding.subject for finding in report.findings if finding.status == "problem"}
    return 0 if report.ok else 1


def _check_model(args: argparse.Namespace) -> "CheckReport":
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.data_sets import check_differ, held_texts, texts_of
    from sae_unlearn.cli.inputs import load_model
    from sae_unlearn.demo import load_demo_texts
    from sae_unlearn.guardrail.check.check import check_guardrail
    from sae_unlearn.guardrail.storage.bundle_index import BundleGiven
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    try:
        folder.config()  # report a wrong name before the model is loaded
    except BundleGiven as found:
        raise UnlearnError(f"Pass --adapter-subfolder: check reads one guardrail. {found}.") from found
    forget, retain = texts_of(args, "forget"), texts_of(args, "retain")
    check_differ(held_texts(forget, args.text_column), held_texts(retain, args.text_column))
    if retain is None:
        retain = load_demo_texts().heldout["retain"]
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    return check_guardrail(
        model,
        folder,
        tokenizer,
        forget,
        retain,
        text_column=args.text_column,
        batch_size=args.batch_size,
    )


def _check_server(args: argparse.Namespace) -> "CheckReport":
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.data_sets import plain, texts_of
    from sae_unlearn.cli.inputs import base_name
    from sae_unlearn.engines.service import Question, Service, check_service
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    config = folder.config()
    args.base = base_name(config)
    chat = (config.calibration or {}).get("chat_template") is True
    questions = [
        Question(role, plain(row, args.text_column), chat)
        for role in ("forget", "retain")
        for row in texts_of(args, role) or ()
    ]
    service = Service(args.url, args.api_key or os.environ.get("OPENAI_API_KEY"), args.timeout)
    return check_service(service, folder, args.name or _name(args), questions)


def _name(args: argparse.Namespace) -> str:
    """Return the name by which a server knows the guardrail."""
    return PurePath(args.adapter_subfolder or Path(args.adapter).expanduser().absolute()).name


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one: a fix of the worst problem, or else the evaluation."""
    problems: set[str] = getattr(args, "problems", set())
    if args.url is not None and not problems:
        return ""
    base = args.model if args.url is None else args.base
    model, forget, retain = ["--model", base], args.forget or ["TOPIC"], args.retain or ["OTHER"]
    inside = ["--adapter-subfolder", args.adapter_subfolder] if args.adapter_subfolder else []
    adapter = ["--adapter", args.adapter, *inside]
    fit = ["fit", *model, "--sae", "SAE", "--forget", "TOPIC", "--retain", "OTHER"]
    steps = {
        "evaluate": ["evaluate", *model, *adapter, "--forget", "QUESTIONS", "--output", "report"],
        "fit": [*fit, "--output", "FOLDER"],  # for this model, or once more
        "scout": ["scout", *model, "--forget", *forget, "--retain", *retain],
        "dose": [*fit, "--clamp-scale", "1", "--output", "FOLDER"],
        "more text": [*fit, *(args.retain or ()), "--output", "FOLDER"],  # text like this was not among the retain text
        "tune": ["tune", *adapter, "--target-recall", str(LEAST_RECALL), "--output", f"{_name(args)}-tuned"],
        "serve": ["serve", base, *adapter],
        "check": ["check", *model, *adapter],
    }
    chosen = _step_for_model(problems) if args.url is None else _step_for_server(problems)
    return shlex.join(["sae-unlearn", *steps[chosen]])


def _step_for_model(problems: set[str]) -> str:
    """The worst problem first."""
    if not problems:
        return "evaluate"
    if problems & ANOTHER:
        return "fit"
    by_problem = {"margin": "scout", "dose": "dose", "quiet": "more text"}
    return next((step for problem, step in by_problem.items() if problem in problems), "tune")


def _step_for_server(problems: set[str]) -> str:
    if problems & NOT_SERVED:
        return "serve"
    if problems - {"on the topic", "other text"}:  # single requests: does the guardrail itself do so?
        return "check"
    return "more text" if "other text" in problems else "tune"
