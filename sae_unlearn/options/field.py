"""`option`, a dataclass field with a help text, and its checks, signatures and merging."""

import copy
import difflib
import inspect
import os
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sae_unlearn.checks import check_bool, check_choice, check_integer, check_list, check_number, quoted
from sae_unlearn.errors import UnlearnError


C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    *,
    group: str = "options",
    shown: str | None = None,
    command_line: bool = True,
    **bounds: float,
) -> Any:
    """Return a dataclass field for an option.

    Args:
        default (Any): Default value.
        help (str): Description, as a sentence without a final period.
        group (str, *optional*, defaults to "options"): Heading in `--help` and the docs.
        shown (str, *optional*, defaults to the default itself): Description of the default in help texts.
        command_line (bool, *optional*, defaults to True): True if the commands have it.
        **bounds (float): `low`, `high`, and for a float `above` and `below`: the range of its value, or of each of its
            items. See `sae_unlearn.checks.check_number`.
    """
    about = {"help": help, "group": group, "shown": shown, "command_line": command_line, "bounds": bounds}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Option:
    """An option of a dataclass, as help texts and docs describe it.

    Attributes:
        name (str): Name of the field.
        kind (type): Type of one value: `bool`, `int`, `float`, `str` or `dict`.
        choices (tuple[Any, ...]): Allowed values; empty for any of its kind.
        several (bool): True if it is a list of such values.
        optional (bool): True if it can be None.
        default (Any): Default value.
        help (str): Description.
        group (str): Heading under which it is listed.
        shown (str): Description of the default in help texts; "" for none.
        command_line (bool): True if the commands have it.
        bounds (dict[str, float]): The range of a value, as `check_integer` and `check_number` take it.
    """

    name: str
    kind: type
    choices: tuple[Any, ...]
    several: bool
    optional: bool
    default: Any
    help: str
    group: str
    shown: str
    command_line: bool
    bounds: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """Name on a command line, such as `--batch-size`."""
        return "--" + self.name.replace("_", "-")

    @property
    def sentence(self) -> str:
        """Help text and default."""
        return f"{self.help} (default: {self.shown})" if self.shown else self.help


def options_of(options: type) -> Iterator[Option]:
    """Yield the options of a dataclass, in the order of its fields."""
    hints = get_type_hints(options)
    for each in fields(options):
        if "bounds" in each.metadata:  # others, such as those of `TrainingArguments`, have a help text alone
            yield _option(each, hints[each.name])


def _option(each: "Field[Any]", hint: Any) -> Option:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [part for part in parts if part is not type(None)]
    kind, choices, several = kinds[0], (), False
    if get_origin(kind) in (list, tuple):
        several, kind = True, get_args(kind)[0]
    if get_origin(kind) is Literal:
        choices, kind = get_args(kind), type(get_args(kind)[0])
    kind = get_origin(kind) or kind
    default = each.default if each.default_factory is MISSING else each.default_factory()
    shown = each.metadata["shown"]
    if shown is None:
        words = default if isinstance(default, (list, tuple)) else [default]
        shown = "" if default is None or isinstance(default, bool) else " ".join(map(str, words))
    return Option(
        name=each.name,
        kind=kind,
        choices=choices,
        several=several,
        optional=len(kinds) < len(parts),
        default=default,
        help=each.metadata["help"],
        group=each.metadata["group"],
        shown=shown,
        command_line=each.metadata["command_line"],
        bounds=each.metadata["bounds"],
    )


def documented(options: C) -> C:
    """Add the options of a dataclass to its docstring, as the section `Args`. A decorator."""
    _describe(options, options)  # type: ignore[arg-type]
    return options


def among_others(options: type) -> Callable[[C], C]:
    """Return a decorator of a dataclass that inherits options and has fields of transformers, too.

    It adds the options to the docstring. Of their metadata it keeps the help text alone, since
    `transformers.HfArgumentParser` passes all metadata on to `argparse`.
    """

    def plain(config: C) -> C:
        _describe(config, options)  # type: ignore[arg-type]
        known = config.__dataclass_fields__  # type: ignore[attr-defined]
        for each in options_of(options):
            known[each.name] = own = copy.copy(known[each.name])
            own.metadata = types.MappingProxyType({"help": _as_sentence(each.sentence)})
        return config

    return plain


def _as_sentence(text: str) -> str:
    name = text.partition(" ")[0].endswith(":")  # of a choice
    return f"{text if name else text[0].upper() + text[1:]}."


def _describe(config: type, options: type) -> None:
    if config.__doc__ is None:  # python -OO
        return
    lines = ["    Args:"]
    for each in options_of(options):
        kind = f"list of {each.kind.__name__}" if each.several else each.kind.__name__
        default = repr(each.default) if each.kind is bool else each.shown or repr(each.default)
        about = f"{each.name} ({kind}, *optional*, defaults to {default}): {_as_sentence(each.help)}"
        lines += textwrap.wrap(about, 120, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False)
    text, section, rest = re.split(r"(^    (?:Raises|Example):\n|\Z)", config.__doc__, maxsplit=1, flags=re.MULTILINE)
    config.__doc__ = text.rstrip() + "\n\n" + "\n".join(lines) + "\n\n" + section + rest


def check_options(given: Any, error: type[UnlearnError] = UnlearnError, options: type | None = None) -> None:
    """Raise unless every option has a value of its type in its range. Of a list, every item must.

    Args:
        given (Any): An instance of a dataclass of options.
        error (type[UnlearnError], *optional*, defaults to UnlearnError): Class of the error.
        options (type, *optional*): The dataclass with the options. None: that of `given`.

    Raises:
        UnlearnError: If a value has another type, is not among the choices, or is out of range.
    """
    for each in options_of(options or type(given)):
        value = getattr(given, each.name)
        if value is None and each.optional:
            continue
        if each.several:
            check_list(each.name, value, error)
        for item in value if each.several else [value]:
            _check_value(each, item, error)


def _check_value(each: Option, value: Any, error: type[UnlearnError]) -> None:
    if each.choices:
        check_choice(each.name, value, each.choices, error)
    elif each.kind is bool:
        check_bool(each.name, value, error)
    elif each.kind is int:
        check_integer(each.name, value, **each.bounds, error=error)
    elif each.kind is float:
        check_number(each.name, value, **each.bounds, error=error)
    elif each.kind is str and not isinstance(value, (str, os.PathLike)):
        raise error(f"{each.name}={quoted(value)}: expected a string.")
    elif each.kind is dict and not isinstance(value, Mapping):
        raise error(f"{each.name}={quoted(value)}: expected a mapping.")


def merged(options: type[C], config: C | None, given: Mapping[str, Any], error: type[UnlearnError]) -> C:
    """Return `config`, or the defaults if it is None, updated with the values of `given`.

    Raises:
        UnlearnError: If `config` has another class, or `given` has an unknown option.
    """
    if config is not None and not isinstance(config, options):
        raise error(f"config: expected {options.__name__}, got {type(config).__name__}.")
    names = [each.name for each in fields(options)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise error(f"{name!r}: expected an option of {options.__name__}." + _hint(near))
    return options(**given) if config is None else replace(config, **given)  # type: ignore[type-var]


def takes_options(options: type) -> Callable[[F], F]:
    """Return a decorator that replaces `**options` in a function's signature by the options.

    `help()`, notebooks and `inspect` then show them.
    """

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = get_type_hints(options)
        more = [
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name]
            )
            for each in options_of(options)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return function

    return shown


def _hint(near: list[str]) -> str:
    return f" Did you mean {near[0]!r}?" if near else ""
