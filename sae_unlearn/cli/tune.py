"""`sae-unlearn tune`."""

import argparse
import shlex
from pathlib import Path

from sae_unlearn.cli.arguments import Parser, add_adapter_arguments
from sae_unlearn.errors import UnlearnError


HELP = "choose another threshold for a fitted guardrail, without a refit; needs no model"
EXAMPLES = """examples:
  sae-unlearn tune forget-biology
  sae-unlearn tune forget-biology --target-recall 0.9 --output forget-biology-90
  sae-unlearn tune forget-biology --max-false-alarms 0.01 --in-place
  sae-unlearn tune forget-biology --picture trade-off.png

the rates are those on the rows that the fit held out, which are stored with the guardrail
"""


def add_arguments(parser: Parser) -> None:
    add_adapter_arguments(parser, "folder or Hub id of a guardrail", positional=True)
    wanted = parser.group("trade-off")
    wanted.add_argument("--target-recall", type=float, metavar="X", help="share of topic rows to fire on, e.g. 0.9")
    wanted.add_argument("--max-false-alarms", type=float, metavar="X", help="share of other text to fire on at most")
    wanted.add_argument("--threshold", type=float, metavar="X", help="the threshold itself")
    written = parser.group("output")
    written.add_argument("--output", metavar="FOLDER", help="folder for the guardrail with that threshold")
    written.add_argument("--in-place", action="store_true", help="write it to the guardrail's own folder")
    written.add_argument("--picture", metavar="FILE", help="draw recall against false alarms, as a PNG")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.inputs import base_name
    from sae_unlearn.cli.outputs import output_folder, picture_file
    from sae_unlearn.files.terminal import table
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder
    from sae_unlearn.guardrail.summary import curve_rows
    from sae_unlearn.guardrail.tuning.curve_plot import curve, draw_trade_off
    from sae_unlearn.guardrail.tuning.stored import tune_guardrail
    from sae_unlearn.guardrail.tuning.trade_off import trade_off, with_trade_off
    from sae_unlearn.guardrail.tuning.verdict import judge

    asked = {name: getattr(args, name) for name in ("target_recall", "max_false_alarms", "threshold")}
    wanted = any(value is not None for value in asked.values())
    if args.output is not None:
        output_folder(args.output)
    if args.in_place and args.output:
        raise UnlearnError("--in-place and --output are given; give one of them.")
    if (args.in_place or args.output) and not wanted:
        raise UnlearnError("Nothing to write; give --target-recall, --max-false-alarms or --threshold.")
    if args.in_place and not Path(args.adapter).expanduser().is_dir():
        raise UnlearnError(f"--in-place: {args.adapter} is not a local folder; give --output.")
    if args.output and output_folder(args.output).absolute() == Path(args.adapter).expanduser().absolute():
        raise UnlearnError(f"--output {args.output}: it is the guardrail's own folder; give --in-place to write there.")
    if args.picture:
        picture_file(args.picture)
    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    config = folder.artefact().config
    calibration = config.calibration or {}
    if not calibration.get("statistic_forget") or not calibration.get("statistic_retain"):
        raise UnlearnError(
            f"{args.adapter}: expected a guardrail with the statistics of its rows, got one without. Fit it again, "
            "with forget and retain texts."
        )
    before = trade_off(calibration, threshold=config.tau)
    after = trade_off(calibration, **asked) if wanted else None
    if after is not None:
        with_trade_off(config, after)  # refuse a threshold out of range before anything is printed
    print(f"Now      {before}")
    if after is not None:
        print(f"Chosen   {after}")
        if args.target_recall is not None:
            print("         (chosen on these forget rows; the share of retain rows is a measurement)")
    else:
        rows = curve_rows(calibration)
        if rows:
            print(f"\n{table([['retain percentile', 'threshold', 'fires on forget', 'fires on retain'], *rows])}")
        verdict = judge(calibration, Path(args.adapter).as_posix())
        if verdict is not None:
            print(f"\n{verdict}")
    if args.picture:
        assert curve(calibration)
        print(f"\nPicture: {draw_trade_off(calibration, args.picture, before, after)}")
    target = args.adapter if args.in_place else args.output
    if target:
        tune_guardrail(folder, target, **asked)
        print(f"\nWritten to {target}")
        args.written, args.base = target, base_name(config)
    return 0


def next_step(args: argparse.Namespace) -> str:
    """The command to run after this one."""
    target = getattr(args, "written", None)
    return shlex.join(["sae-unlearn", "check", "--model", args.base, "--adapter", target]) if target else ""
