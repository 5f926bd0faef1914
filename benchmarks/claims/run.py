"""The abstract of arXiv 2504.08192, claim by claim, for the guardrail of this library.

    python -m benchmarks.forget.compare run --data FOLDER --results CELLS     # what the trade-off is read from
    python -m benchmarks.claims.run run --data FOLDER --cells CELLS --results FOLDER   # goes on where it was cut
    python -m benchmarks.claims.run summary --results FOLDER

Each claim is a file of `claims/`: what is measured of a topic, and the rule by which the figures hold or do not hold
here; the table is made by the rules and by nothing else. What WMDP and MT-Bench were asked for needs data and a judge
that are not here, and is named as such. Topics, `--quick` and the like are those of `benchmarks.forget.compare`.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.claims import CLAIMS, Work
from benchmarks.claims.claim import CANNOT, NOT_MEASURED, Verdict
from benchmarks.claims.cost import in_this_process
from benchmarks.claims.parts import Parts
from benchmarks.claims.trade_off import draw
from benchmarks.forget.cached_front import Front
from benchmarks.forget.compare import add_setting_arguments, base_cell, setting_arguments, settings, write
from benchmarks.forget.setting import Setting
from benchmarks.forget.table import RESULTS
from benchmarks.forget.topics import data_folder
from sae_unlearn.files.terminal import table


ELSEWHERE = {
    "WMDP accuracy below RMU's": "the model is at chance on lettered questions, and WMDP has to be downloaded",
    "MT-Bench score kept": "needs a model that is tuned to instructions and a judge",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, cost_of, summary = (commands.add_parser(name) for name in ("run", "cost-of", "summary"))
    for command in (run, cost_of):
        add_setting_arguments(command)
    for command in (run, summary):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per claim and topic")
    run.add_argument("--cells", type=Path, required=True, help="results of benchmarks.forget.compare")
    run.add_argument("--claims", nargs="*", default=tuple(CLAIMS), choices=tuple(CLAIMS))
    cost_of.add_argument("--method", required=True, help="to be timed in this process")
    summary.add_argument("--write", action="store_true", help="also to benchmarks/results, with pictures")
    args = parser.parse_args()
    if args.command == "summary":
        summarise(args.results, args.write)
    elif args.command == "cost-of":
        print(json.dumps(in_this_process(next(iter(settings(args))), args.method)))
    else:
        for setting in settings(args):
            run_claims(args, setting)


def run_claims(args: argparse.Namespace, setting: Setting) -> None:
    """The figures of a topic that are not there yet."""
    front = Front()
    base = base_cell(setting, args.cells, front)
    work = Work(data_folder(args.data), args.cells, base, front, setting_arguments(args), args.quick)
    for name in args.claims:
        path = args.results / f"{name}-{setting.texts.name}-{setting.seed}.json"
        if not path.exists():
            start, cpu = time.monotonic(), time.process_time()
            parts = Parts(args.results / "parts" / path.stem)
            found = CLAIMS[name].measure(setting, replace(work, part=parts))
            spent = {
                "cell_seconds": time.monotonic() - start + parts.seconds,
                "cell_cpu_seconds": time.process_time() - cpu + parts.cpu_seconds,
            }
            write(path, {"claim": name, "topic": setting.texts.name, "seed": setting.seed, **spent, "found": found})
            parts.remove()


def verdicts(folder: Path) -> dict[str, tuple[Verdict, list[str]]]:
    """Every claim's verdict by its own rule, and the topics it rests on."""
    found = {}
    for name, claim in CLAIMS.items():
        cells = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]
        verdict = claim.judge([cell["found"] for cell in cells]) if cells else Verdict(NOT_MEASURED, "")
        found[name] = (verdict, sorted({cell["topic"] for cell in cells}))
    return found


def summarise(folder: Path, keep: bool = False) -> str:
    """Print the table of claims and its rules, and with `keep` write them with all figures."""
    found = verdicts(folder)
    rows = [["claim", "verdict", "topics", "figure"]]
    for name, (verdict, topics) in found.items():
        rows.append([CLAIMS[name].title, verdict.verdict, ", ".join(topics), verdict.figure])
    rows += [[title, CANNOT, "", reason] for title, reason in ELSEWHERE.items()]
    rules = "\n".join(f"  {claim.title}: {claim.rule}." for claim in CLAIMS.values())
    text = f"{table(rows)}\n\nA claim holds if\n\n{rules}"
    print(text)
    if keep:
        figures = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        (RESULTS / "guardrail_claims.txt").write_text(text + "\n")
        (RESULTS / "guardrail_claims.json").write_text(json.dumps(figures, indent=1))
        for path in sorted(folder.glob("trade_off-*.json")):
            draw(json.loads(path.read_text())["found"], RESULTS / f"guardrail_{path.stem}.png")
    return text


if __name__ == "__main__":
    main()
