"""The command `sae-unlearn demo`: arguments and run."""

import argparse
from pathlib import Path

from sae_unlearn.cli.arguments import Parser, add_output_argument


HELP = "fit a guardrail on a real language model, offline, and measure what it forgets and keeps"
EXAMPLES = """examples:
  sae-unlearn demo
  sae-unlearn demo --output my-demo --quick
"""

LICENSE = "gemma"  # license of the demo's model and its SAE, and so of the fitted guardrail


def add_arguments(parser: Parser) -> None:
    add_output_argument(parser, "folder for the guardrail and the report", default="sae-unlearn-demo")
    parser.group("measuring").add_argument(
        "--quick", action="store_true", help="report on a third of the texts; the fit is the same"
    )


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.outputs import output_folder
    from sae_unlearn.demo import load_demo_model, load_demo_sae, load_demo_texts, run_demo
    from sae_unlearn.demo.run import Steps

    output = output_folder(args.output)
    steps = Steps()
    with steps("load", "Loading Gemma 3 270M and its SAE (the first time converts it: about a minute)"):
        model, tokenizer = load_demo_model()
        sae = load_demo_sae()
    report = run_demo(
        model,
        tokenizer,
        sae,
        output,
        load_demo_texts(),
        quick=args.quick,
        progress=args.progress,
        steps=steps,
        license=LICENSE,
    )
    if not report.same:
        print("The adapter loaded from disk answers differently from the fitted one; see above.")
        return 1
    print(_usage(report.adapter))
    return 0


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    return f"sae-unlearn check --model demo --adapter {_adapter(args)}"


def _adapter(args: argparse.Namespace) -> str:
    from sae_unlearn.demo.run import ADAPTER_FOLDER

    return (Path(args.output) / ADAPTER_FOLDER).as_posix()


def _usage(adapter: Path) -> str:
    return f"""
To use it:

    from sae_unlearn import attach_guardrail
    from sae_unlearn.demo import load_demo_model
    model = attach_guardrail(load_demo_model()[0], "{adapter.as_posix()}")

To show its content:

    sae-unlearn show {adapter.as_posix()}"""
