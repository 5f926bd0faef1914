# PYTHON_ARGCOMPLETE_OK
"""The command line `sae-unlearn`. Each command is a module of `sae_unlearn.cli`.

The parsers are built without torch, transformers and peft, so that `--help`, a wrong option and completion are as fast
as Python itself. `sae_unlearn.guardrail` is imported when a command runs.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_unlearn.cli import (
    audit,
    chat,
    check,
    demo,
    env,
    evaluate,
    fit,
    playground,
    saes,
    scout,
    serve,
    show,
    train,
    train_sae,
    tune,
)
from sae_unlearn.cli.arguments import BAD_INPUT, Parser, arguments_of
from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.terminal import printable
from sae_unlearn.version import __version__


COMMANDS = {
    "demo": demo,
    "saes": saes,
    "train-sae": train_sae,
    "scout": scout,
    "fit": fit,
    "train": train,
    "evaluate": evaluate,
    "audit": audit,
    "show": show,
    "tune": tune,
    "chat": chat,
    "playground": playground,
    "check": check,
    "serve": serve,
    "env": env,
}

SHARED = ("fit", "train", "train-sae", "evaluate")  # commands that several processes of a launch can share

INTERRUPTED = 130

_DESCRIPTION = "Take knowledge out of a language model with sparse autoencoders."
_EXAMPLES = """examples:
  sae-unlearn demo
  sae-unlearn saes MODEL
  sae-unlearn fit --model MODEL --sae SAE --forget topic.txt --retain other.txt --output forget-topic
  sae-unlearn train --model MODEL --sae SAE --targets people.json --known ... --unknown ... --output forget-people
  sae-unlearn evaluate --model MODEL --adapter forget-topic --forget questions.json --retain other.txt --output report
  sae-unlearn audit --model MODEL --adapter forget-topic --forget questions.json --retain others.json --output audit
  sae-unlearn show forget-topic
  sae-unlearn check --model MODEL --adapter forget-topic
  sae-unlearn serve MODEL --adapter forget-topic
  sae-unlearn env

`sae-unlearn COMMAND --help` shows the options of a command
"""


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
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
        general = command.group("general")
        general.add_argument("--config", metavar="FILE", help="JSON or YAML file with options; the command line wins")
        general.add_argument(
            "--progress", action=argparse.BooleanOptionalAction, default=True, help="show progress bars (default: yes)"
        )
        general.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    The codes are 0 for success, 1 for a bad finding, 2 for bad input, and 130 for an interrupt.

    Args:
        argv (Sequence[str], *optional*): The arguments. Defaults to those of the process.
    """
    parser = build_parser()
    _complete(parser)
    args = parser.parse_args(_with_file(parser, sys.argv[1:] if argv is None else list(argv)))
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
    import sae_unlearn.guardrail  # noqa: F401  registers the adapter with PEFT, see `sae_unlearn/__init__.py`

    command = COMMANDS[args.command]
    if not _is_launched():
        code = command.run(args)
        _print_next(command.next_step(args))
        return code
    if args.command not in SHARED:
        raise UnlearnError(f"{args.command} runs in one process. Start it without accelerate launch or torchrun.")
    from sae_unlearn.backbone.distributed import leaving_launch

    with leaving_launch():
        code = command.run(args)
    if os.environ.get("RANK", "0") == "0":
        _print_next(command.next_step(args))
    return code


def _print_next(step: str) -> None:
    """Print the command to run next, if any."""
    if step:
        print(f"\nNext: {printable(step, limit=1000)}")


def _is_launched() -> bool:
    """Return True if this is one of several processes, without importing torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _one_line(error: Exception) -> str:
    """Return the message of an error on one line; for an unexpected error also its class and a hint."""
    message = printable(" ".join(str(error).split()), limit=1000)
    if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError)) and message:
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _with_file(parser: Parser, argv: list[str]) -> list[str]:
    """Return the arguments, followed by those of `--config FILE`."""
    commands = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    command: Parser | None = commands.get(argv[0]) if argv else None
    place = next((i for i, word in enumerate(argv) if word.partition("=")[0] == "--config"), None)
    if command is None or place is None or {"-h", "--help"} & {*argv}:
        return argv
    name = argv[place].partition("=")[2] or next(iter(argv[place + 1 :]), "")
    try:
        end = argv.index("--") if "--" in argv else len(argv)  # the words behind it are passed on
        return argv[:end] + arguments_of(_read_settings(name), command, argv[1:end]) + argv[end:]
    except (ValueError, OSError) as error:
        command.error(f"--config {name}: {error}")


def _read_settings(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() in (".yaml", ".yml"):
        import yaml

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UnlearnError(f"it is not YAML: {' '.join(str(error).split())}") from error
    else:
        found = json.loads(text)
    if not isinstance(found, dict):
        raise UnlearnError(f"it holds a {type(found).__name__}: expected options by name.")
    return found


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell's request for completions with `argcomplete`, if installed."""
    if "_ARGCOMPLETE" in os.environ:
        try:
            import argcomplete
        except ImportError:
            return
        argcomplete.autocomplete(parser)


def _quieten(progress: bool) -> None:
    """Hide the libraries' messages to developers, and slow progress bars down outside of a terminal."""
    import warnings

    if not sys.stderr.isatty():  # tqdm reads these at import: in a log, one line every 30 seconds
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("TQDM_MAXINTERVAL", "30")

    import transformers

    # other packages' own warnings; a model is called from torch.nn.modules with our arguments
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(?!sae_unlearn|torch\.nn\.modules)")
    transformers.logging.set_verbosity_error()
    if not progress:
        transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
