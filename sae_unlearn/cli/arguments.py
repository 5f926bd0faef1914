"""Parsers of the commands: groups, options from dataclasses, and one-line errors.

`transformers.HfArgumentParser` also makes arguments from dataclasses, but its import takes longer than `--help` may.
This module reads the same dataclasses: `Literal` gives choices, `list` several values, `bool` a flag and its opposite.
"""

import argparse
from collections.abc import Container, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.terminal import printable
from sae_unlearn.options.field import Option, options_of


C = TypeVar("C")
BAD_INPUT = 2
DTYPES = ("auto", "float32", "bfloat16", "float16")
NO_ADAPTER = "{option} is an option of an adapter. Pass --adapter, too."


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors and without abbreviations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | options)
        self._headings: dict[str, argparse._ArgumentGroup] = {}
        self._needed: list[str] = []
        self._after: str | None = None

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return the group of arguments with this heading. `--help` has each heading once."""
        if title not in self._headings:
            self._headings[title] = self.add_argument_group(title)
        return self._headings[title]

    def need(self, name: str) -> None:
        """Require an argument that can be passed by position or by name."""
        self._needed.append(name)

    def pass_on(self, name: str, heading: str, help: str) -> None:
        """Keep the words after `--` as the list `name`. `argparse` mixes them with arguments by position."""
        self._after = name
        self.add_argument_group(heading, help)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as `argparse` does, and refuse a missing argument of `need`."""
        after: list[str] = []
        if self._after is not None and args is not None and "--" in args:
            place = args.index("--")
            args, after = args[:place], args[place + 1 :]
        found, rest = super().parse_known_args(args, namespace)
        if self._after is not None:
            setattr(found, self._after, after)
        missing = [f"--{name}" for name in self._needed if getattr(found, name, None) is None]
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


class _Numbers(argparse.Action):
    """A list of integers, with spaces or commas between them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [number for part in values for number in part])


class ByPlaceOrName(argparse.Action):
    """A value that is passed by position or by name, but not by both."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        way, before = "by its place" if option_string is None else "by its name", f"_{self.dest}_given"
        if getattr(namespace, before, way) != way:
            parser.error(f"{self.dest} is passed twice: {getattr(namespace, self.dest)} and {values}")
        setattr(namespace, before, way)
        setattr(namespace, self.dest, values)


def add_options(parser: Parser, options: type, skip: Container[str] = ()) -> None:
    """Add an argument for each option of a dataclass, under the option's heading.

    Args:
        parser (Parser): Parser of a command.
        options (type): A dataclass whose fields are made with `sae_unlearn.options.field.option`.
        skip (Container[str], *optional*, defaults to ()): Names of options that the command does not have.
    """
    for each in options_of(options):
        if each.command_line and each.name not in skip:
            add_option(parser, each)


def add_option(parser: Parser, each: Option) -> None:
    """Add the argument of one option."""
    about: dict[str, Any] = {"default": each.default, "help": each.sentence.replace("%", "%%")}
    if each.kind is bool:
        about["action"] = argparse.BooleanOptionalAction
    elif each.several and each.kind is int:
        about |= {"action": _Numbers, "nargs": "+", "type": _numbers, "metavar": "N"}
    else:
        about |= {"type": each.kind, "nargs": "+" if each.several else None}
        about |= (
            {"choices": each.choices}
            if each.choices
            else {"metavar": "FOLDER" if each.name.endswith("_dir") else _METAVARS[each.kind]}
        )
    parser.group(each.group).add_argument(each.flag, **about)


def options_from(args: argparse.Namespace, options: type[C], **more: Any) -> C:
    """Return the dataclass with the values of a command's arguments.

    Args:
        args (argparse.Namespace): The parsed arguments.
        options (type[C]): The dataclass of `add_options`.
        **more (Any): Values of options that are not arguments of the command.
    """
    names = [each.name for each in options_of(options) if each.command_line and hasattr(args, each.name)]
    return options(**{name: getattr(args, name) for name in names} | more)


def add_model_arguments(parser: Parser, required: bool = True, positional: bool = False) -> None:
    """Add the options of the model: name, revision, device and dtype."""
    _add_named(parser, "model", "Hub id or folder of a causal language model, or demo", required, positional)
    model = parser.group("model")
    model.add_argument("--device", help="cpu, cuda:0, ..., or auto for several (default: cuda if available)")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: as stored)")


def add_adapter_arguments(
    parser: Parser,
    help: str = "folder or Hub id of a guardrail, a bundle, or a PEFT adapter such as a LoRA",
    required: bool = False,
    positional: bool = False,
) -> None:
    """Add the options of the adapter."""
    _add_named(parser, "adapter", help, required or positional, positional)
    parser.group("adapter").add_argument(
        "--adapter-subfolder", metavar="FOLDER", help="folder inside it, such as a member of a bundle"
    )


def add_labels_argument(parser: Parser) -> None:
    """Add `--labels`."""
    parser.group("SAE").add_argument(
        "--labels",
        metavar="SOURCE",
        help="labels of the features: neuronpedia downloads the SAE's export; or a .jsonl or .jsonl.gz file of one",
    )


def add_sae_arguments(parser: Parser, help: str) -> None:
    """Add the options of the SAE."""
    _add_named(parser, "sae", help, required=True, title="SAE")
    parser.group("SAE").add_argument(
        "--sae-subfolder", metavar="FOLDER", help="folder inside the repository of the SAE"
    )


def add_output_argument(parser: Parser, help: str, default: str | None = None) -> None:
    """Add `--output`."""
    shown = help if default is None else f"{help} (default: {default})"
    parser.group("output").add_argument(
        "--output", metavar="FOLDER", required=default is None, default=default, help=shown
    )


def _add_named(
    parser: Parser, name: str, help: str, required: bool, positional: bool = False, title: str | None = None
) -> None:
    group = parser.group(title or name)
    if positional:
        parser.add_argument(
            name,
            metavar=name.upper(),
            nargs="?",
            default=argparse.SUPPRESS,
            action=ByPlaceOrName,
            help=f"the same as --{name}",
        )
        if required:
            parser.need(name)
    group.add_argument(
        f"--{name}", metavar=name.upper(), required=required and not positional, help=help, action=ByPlaceOrName
    )
    group.add_argument(f"--{name}-revision", metavar="REVISION", help=f"branch, tag or commit of the {title or name}")


def hub_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the adapter's revision and subfolder.

    Raises:
        UnlearnError: If one is passed without an adapter.
    """
    if args.adapter is None:
        for name in ("adapter_revision", "adapter_subfolder"):
            if getattr(args, name) is not None:
                raise UnlearnError(NO_ADAPTER.format(option="--" + name.replace("_", "-")))
    return {"revision": args.adapter_revision, "subfolder": args.adapter_subfolder}


def arguments_of(settings: Mapping[str, Any], parser: argparse.ArgumentParser, given: Sequence[str]) -> list[str]:
    """Return settings of a file as arguments, without those that the command line has.

    Args:
        settings (Mapping[str, Any]): Values by the name of their option, with `_` or `-` between words.
        parser (argparse.ArgumentParser): Parser of the command.
        given (Sequence[str]): The command line.

    Raises:
        UnlearnError: If the command has no such option, or a value has a type that the option cannot have.
    """
    known = {flag: action for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    used = {word.partition("=")[0] for word in given}
    found: list[str] = []
    for name, value in settings.items():
        flag = "--" + str(name).replace("_", "-")
        if flag not in known or flag in ("--help", "--config"):
            raise UnlearnError(f"{name}: expected an option of {parser.prog}: {', '.join(sorted(known))}.")
        action = known[flag]
        if value is None or used.intersection(action.option_strings):
            continue
        found += _words(flag, action, name, value)
    return found


def _words(flag: str, action: argparse.Action, name: str, value: Any) -> list[str]:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UnlearnError(f"{name}={value!r}: expected true or false.")
        opposite = flag.replace("--", "--no-", 1)
        off = [opposite] if opposite in action.option_strings else []
        return [flag] if value else off
    if isinstance(value, list) and action.nargs == "+" and value:
        return [flag, *map(str, value)]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UnlearnError(f"{name}={value!r}: expected {'a list' if action.nargs == '+' else 'a number or a text'}.")
    return [f"{flag}={value}"]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 12,406,981.") from error


_METAVARS = {int: "N", float: "X", str: "TEXT"}
