"""Every attack of `audit` on the demo's guardrail.

    sae-unlearn demo --output DEMO
    python -m benchmarks.forget.demo_audit run --adapter DEMO/forget-biology --data FOLDER --results FOLDER   # resumes
    python -m benchmarks.forget.demo_audit summary --results FOLDER [--card DEMO/forget-biology]

The questions are the demo's facts, on the topic and on other things, of which the fit has seen none. Neighbors are
questions of chemistry and of psychology with their answers; the other sets stand in `demo_audit_sets.py`. Each attack
is one report in a folder of its own; the summary is one report of all.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.forget.demo_audit_sets import TOPIC_NAMES, UNKNOWN, UNNAMED
from benchmarks.forget.table import RESULTS
from benchmarks.forget.topics import data_folder, questions
from sae_unlearn import attach_guardrail
from sae_unlearn.cli.inputs import load_model
from sae_unlearn.demo.texts import SIDES, load_demo_texts
from sae_unlearn.evaluation import AuditReport, add_to_card, audit
from sae_unlearn.evaluation.audit.registry import ATTACKS


NEIGHBORS = "neighbors"
NEAR_SUBJECTS = ("high_school_chemistry", "high_school_psychology")
TITLE = "Audit of the demo's guardrail"


def run(args: argparse.Namespace) -> None:
    """The attacks that are not there yet."""
    model, tokenizer = load_model("demo")
    guarded = attach_guardrail(model, args.adapter)
    facts = load_demo_texts().reduced(1, args.facts, 1).facts
    folder = data_folder(args.data)
    near = {subject.replace("_", " "): questions(folder, subject)[: args.facts] for subject in NEAR_SUBJECTS}
    for name in (NEIGHBORS, *ATTACKS) if args.attacks is None else args.attacks:
        if not (args.results / name).is_dir():
            given = {"neighbors": near} if name == NEIGHBORS else {}
            report = audit(
                guarded,
                tokenizer,
                *(facts[side] for side in SIDES),
                unnamed=UNNAMED,
                names=TOPIC_NAMES,
                unknown=UNKNOWN,
                attacks=[] if name == NEIGHBORS else [name],
                title=TITLE,
                **given,
            )
            report.save(args.results / name)


def joined(reports: Sequence[AuditReport]) -> AuditReport:
    """One report of several on the same questions; the questions as they are stand in it once."""
    first = next((report for report in reports if report.neighbors is not None), reports[0])
    rows = [*reports[0].rows[:1], *(row for report in reports for row in report.rows[1:])]
    notes = [note for report in reports for note in report.notes if not note.startswith(NEIGHBORS)]
    budgets = {name: text for report in reports for name, text in report.budgets.items()}
    return replace(first, rows=tuple(rows), budgets=budgets, notes=tuple(dict.fromkeys(notes)))


def summarise(args: argparse.Namespace) -> None:
    """Print the report of all attacks, write it beside the other results, and into the adapter's card if asked to."""
    order = [name for name in (NEIGHBORS, *ATTACKS) if (args.results / name).is_dir()]
    report = joined([AuditReport.load(args.results / name) for name in order])
    print(report.to_markdown())
    report.save(RESULTS / args.name)
    if args.card:
        add_to_card(report, args.card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running, summary = commands.add_parser("run"), commands.add_parser("summary")
    for command in (running, summary):
        command.add_argument("--results", type=Path, required=True, help="folder of one report per attack")
    running.add_argument("--adapter", required=True, help="what the demo fitted")
    running.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    running.add_argument("--facts", type=int, default=32, help="per side, of 48")
    running.add_argument("--attacks", nargs="+", choices=(NEIGHBORS, *ATTACKS), help="which ones (default: all)")
    summary.add_argument("--name", default="demo_audit", help="of the folder in benchmarks/results")
    summary.add_argument("--card", type=Path, help="folder of the adapter, whose card takes the report")
    args = parser.parse_args()
    (run if args.command == "run" else summarise)(args)


if __name__ == "__main__":
    main()
