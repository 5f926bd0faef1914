"""Errors that the package raises are those of `sae_unlearn.errors`, except what Python defines for the case."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import sae_unlearn
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported, UnlearnError


PACKAGE = Path(sae_unlearn.__file__).parent
BUILTIN = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
ANYWHERE = {
    OSError: "what `open` would raise for the path that was passed, for code that catches it",
    ImportError: "an optional package is missing; code that tries an import catches it",
}
PLACES = {
    ("__init__.py", "AttributeError"): "the protocol of `__getattr__`",
    ("guardrail/model.py", "AttributeError"): "the protocol of `__getattr__`",
    ("guardrail/tuner_layer.py", "AttributeError"): "the protocol of `__getattr__`",
    ("alignment/publishing.py", "NotImplementedError"): "a method that the subclass has",
    ("guardrail/runtime/gate_history.py", "NotImplementedError"): "a method that the subclass has",
}
"""Where a builtin error is right, and why."""


def raised() -> Iterator[tuple[str, str]]:
    """The file and the class's name of each builtin error that is raised."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
                if name in BUILTIN:
                    yield path.relative_to(PACKAGE).as_posix(), name


def test_a_builtin_error_is_raised_only_where_it_is_right() -> None:
    found = {place for place in raised() if not issubclass(BUILTIN[place[1]], tuple(ANYWHERE))}
    assert found == set(PLACES)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(UnlearnError, ValueError), (GuardrailNotReady, RuntimeError), (GuardrailUnsupported, NotImplementedError)],
)
def test_an_error_can_be_caught_without_this_package(error: type, builtin: type) -> None:
    assert issubclass(error, UnlearnError)
    assert issubclass(error, builtin)
