"""The public callables, as the pages in docs/api name them, and what their docstrings say of arguments."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import FunctionType
from typing import Any

import yaml
from pages import DOCS


SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:")
CHECKS = ("sae_unlearn.checks", "sae_unlearn.tensor_checks", "sae_unlearn.files.untrusted")
_OF_PAGE = re.compile(r"^::: (\S+)\n((?:    .*\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \((.+?)\))?: (?=\S)")


@dataclass(frozen=True)
class Public:
    """A public callable or property: its name, what is called (None for a property), and its docstring."""

    name: str
    call: Any
    doc: str


def public() -> dict[str, Public]:
    """All public functions, classes, methods and properties, by name."""
    found: dict[str, Public] = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for path, options in _OF_PAGE.findall(page.read_text(encoding="utf-8") + "\n"):
            home, _, name = path.rpartition(".")
            value = getattr(importlib.import_module(home), name)
            members = (yaml.safe_load(options) or {}).get("options", {}).get("members", True)
            if inspect.isclass(value):
                found |= {each.name: each for each in of_class(value, members)}
            elif callable(value):
                found[name] = Public(name, value, inspect.getdoc(value) or "")
    return found


def of_class(value: type, shown: bool | list[str]) -> Iterator[Public]:
    """A class, and those of its members that the page shows: the listed ones, or all that this package defines."""
    yield Public(value.__name__, value, _doc_of_class(value))
    members: dict[str, Any] = {}
    for base in reversed(_ours(value)):
        members |= {name: member for name, member in vars(base).items() if not name.startswith("_")}
    for name in shown if isinstance(shown, list) else members if shown else ():
        member = members[name]
        if isinstance(member, (FunctionType, classmethod, staticmethod)):
            call = getattr(member, "__func__", member)
            yield Public(f"{value.__name__}.{name}", call, inspect.cleandoc(call.__doc__ or ""))
        elif isinstance(member, property):
            yield Public(f"{value.__name__}.{name}", None, inspect.cleandoc(member.__doc__ or ""))


def _ours(value: type) -> list[type]:
    return [base for base in value.__mro__ if base.__module__.startswith("sae_unlearn")]


def _doc_of_class(value: type) -> str:
    """Its docstring, with the sections of the base that has the constructor if it has none of its own."""
    docs = [inspect.cleandoc(base.__doc__ or "") for base in _ours(value)]
    return docs[0] if entries(docs[0]) or len(docs) == 1 else "\n\n".join(docs)


def sections(doc: str) -> dict[str, str]:
    """The text of each section, without its indent."""
    found: dict[str, list[str]] = {}
    inside = ""
    for line in doc.split("\n"):
        if line.strip() and not line.startswith(" "):
            inside = line.strip() if line.strip() in SECTIONS else ""
            found.setdefault(inside, [])
        elif inside:
            found[inside].append(line)
    return {name: textwrap.dedent("\n".join(lines)) for name, lines in found.items() if name}


def entries(doc: str) -> dict[str, str]:
    """From each described argument to what is in its parentheses, the type and the default; "" without them."""
    found: dict[str, str] = {}
    text = sections(doc)
    for block in re.split(r"\n(?=\S)", "\n".join(text.get(name, "") for name in ("Args:", "Attributes:"))):
        match = _ENTRY.match(re.sub(r"\s+", " ", block.strip()))
        if match:
            found |= dict.fromkeys(match[1].replace("*", "").split(", "), match[2] or "")
    return found


def parameters(call: Any) -> list[inspect.Parameter]:
    """The parameters that a docstring has to describe.

    Options, which `takes_options` puts into a signature, and fields with a help text are described there. Fields that
    another package's class brings are described by that package.
    """
    if inspect.isclass(call) and constructor(call) is None and not hasattr(call, "__match_args__"):
        return []  # another package's constructor
    found = [p for p in inspect.signature(call).parameters.values() if p.name not in ("self", "cls")]
    if inspect.isclass(call):
        factories = {f.name: f.default_factory for f in fields(call)} if is_dataclass(call) else {}
        found = [p.replace(default=factories[p.name]()) if repr(p.default) == "<factory>" else p for p in found]
        own = {name for base in _ours(call) for name in vars(base).get("__annotations__", ())}
        helped = {f.name for f in fields(call) if "help" in f.metadata} if is_dataclass(call) else set()
        described = helped if not is_dataclass(call) else helped | ({p.name for p in found} - own)
        return [p for p in found if p.name not in described]
    code = getattr(inspect.unwrap(call), "__code__", None)
    if code is None:
        return found
    own = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2])
    star = [p for p in found if p.name in own]
    if len(star) < len(found):  # `**options`, which the options replace
        star.append(inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD))
    return star


def wrong_entry(parameter: inspect.Parameter, told: str | None) -> str | None:
    """What is wrong with the entry of a parameter, or None."""
    name, default = parameter.name, parameter.default
    if told is None:
        return f"{name}: no entry"
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return None  # the text says which
    if not told or told.startswith("*optional*"):
        return f"{name}: no type"
    variable = parameter.kind is inspect.Parameter.VAR_POSITIONAL
    if not variable and (default is not parameter.empty) != ("*optional*" in told):
        return f"{name}: *optional* must stand where there is a default, got ({told})"
    stated = told.partition("defaults to ")[2]
    if not variable and default is not parameter.empty and not _same(stated, default):
        return f"{name}: expected `defaults to {default!r}`, got ({told})"
    return None


def _same(stated: str, default: Any) -> bool:
    """True if a text names a default. Words may stand for None, for a long default, and for one without a literal."""
    if default is None:
        return stated != "None"
    try:
        return bool(ast.literal_eval(stated) == default)
    except (ValueError, SyntaxError):
        return bool(stated) and (stated == str(default) or len(repr(default)) > 100)


@cache
def raises(function: Any) -> bool:
    """True if a function raises in its own body, or calls a helper of its module or a shared check that does."""
    if not isinstance(function, FunctionType):
        return False
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = inspect.unwrap(function).__globals__.get(node.func.id)
            near = getattr(called, "__module__", "") in (function.__module__, *CHECKS)
            if near and called is not function and raises(called):
                return True
    return False


def constructor(value: type) -> Any:
    """The function of this package that runs when a class is called, or None."""
    for base in _ours(value):
        for name in ("__post_init__", "__init__"):
            found = vars(base).get(name)
            if found is not None and not (name == "__init__" and "__dataclass_fields__" in vars(base)):
                return found
    return None
