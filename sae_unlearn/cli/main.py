"""The command line, `sae-unlearn`. Each command is a module of `sae_unlearn.cli`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sae_unlearn.cli import audit, check, demo, env, evaluate, fit, show, train
from sae_unlearn.files.terminal import printable
from sae_unlearn.version import __version__


COMMANDS = {
    "demo": demo,
    "fit": fit,
    "train": train,
    "evaluate": evaluate,
    "audit": audit,
    "show": show,
    "check": check,
    "env": env,
}

SHARED = ("fit", "train", "evaluate")  # what several processes of a launch do together

BAD_INPUT = 2
INTERRUPTED = 130

_DESCRIPTION = "Take knowledge out of a language model with sparse autoencoders."
_EXAMPLES = """examples:
  sae-unlearn demo
  sae-unlearn fit --model MODEL --sae SAE --forget topic.txt --retain other.txt --output forget-topic
  sae-unlearn train --model MODEL --sae SAE --targets people.json --known ... --unknown ... --output forget-people
  sae-unlearn evaluate --model MODEL --adapter forget-topic --forget questions.json --retain other.txt --output report
  sae-unlearn audit --model MODEL --adapter forget-topic --forget questions.json --retain others.json --output audit
  sae-unlearn show forget-topic
  sae-unlearn check MODEL forget-topic
  sae-unlearn env

`sae-unlearn COMMAND --help` tells the rest
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="sae-unlearn",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sae-unlearn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument("--no-progress", dest="progress", action="store_false", help="show no progress bars")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 done with a bad finding, 2 bad input, 130 interrupted.

    Args:
        argv: the arguments; None takes the process's.
    """
    args = build_parser().parse_args(argv)
    _quieten(args.progress)
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("sae-unlearn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            raise
        who = f" (process {os.environ.get('RANK', '?')})" if _is_launched() else ""
        print(f"sae-unlearn {args.command}{who}: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _run(args: argparse.Namespace) -> int:
    if not _is_launched():
        return COMMANDS[args.command].run(args)
    if args.command not in SHARED:
        raise ValueError(f"{args.command} runs in one process; start it without accelerate launch or torchrun.")
    from sae_unlearn.backbone.distributed import leaving_launch

    with leaving_launch():
        return COMMANDS[args.command].run(args)


def _is_launched() -> bool:
    """Whether this is one of several processes; told without importing torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _one_line(error: Exception) -> str:
    """The message of an error that tells a user what to mend; of any other its kind as well, and how to see more."""
    message = printable(" ".join(str(error).split()), limit=1000)
    if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError)) and message:
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _quieten(progress: bool) -> None:
    """Leave out what libraries say to developers."""
    import warnings

    import transformers

    # of others' own code; a call of a model is made in torch.nn.modules, and its arguments are ours
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(?!sae_unlearn|torch\.nn\.modules)")
    transformers.logging.set_verbosity_error()
    if not progress:
        transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
