"""Errors that we raise are those of `sae_unlearn.errors`, except what Python defines for the case."""

import ast
import builtins
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiers import TESTS

import sae_unlearn
from sae_unlearn import errors
from sae_unlearn.errors import GuardrailError, GuardrailNotReady, GuardrailUnsupported, UnlearnError, as_guardrail_error


PACKAGE = Path(sae_unlearn.__file__).parent
BENCHMARKS = TESTS.parent / "benchmarks"
BUILTIN = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
ANYWHERE = {
    OSError: "what `open` would raise for the path that was passed, for code that catches it",
    ImportError: "an optional package is missing; code that tries an import catches it",
    SystemExit: "a script of the benchmarks ends with a sentence; the package has none, see below",
}
PLACES = {
    ("__init__.py", "AttributeError"): "the protocol of `__getattr__`",
    ("guardrail/model.py", "AttributeError"): "the protocol of `__getattr__`",
    ("guardrail/tuner_layer.py", "AttributeError"): "the protocol of `__getattr__`",
    ("alignment/publishing.py", "NotImplementedError"): "a method that the subclass has",
    ("evaluation/report/files.py", "NotImplementedError"): "a method that the subclass has",
    ("guardrail/runtime/gate_history.py", "NotImplementedError"): "a method that the subclass has",
}
"""Where a builtin error is right, and why."""
PLACES_OF_BENCHMARKS = {
    ("baselines/training.py", "FloatingPointError"): "a training whose loss is not finite",
    ("claims/cost.py", "RuntimeError"): "a process that was started ended with an error",
    ("serving/throughput.py", "RuntimeError"): "an engine gave no answer",
    ("serving/transcript.py", "RuntimeError"): "a server did not start",
    ("site_pages/any_model.py", "ValueError"): "runs where the package is not installed",
    ("site_pages/attacks.py", "LookupError"): "runs where the package is not installed",
    ("site_pages/results.py", "LookupError"): "runs where the package is not installed",
    ("site_pages/results.py", "ValueError"): "runs where the package is not installed",
}


def raised(root: Path) -> Iterator[tuple[str, str]]:
    """The file and the class's name of each builtin error that is raised."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
                if name in BUILTIN:
                    yield path.relative_to(root).as_posix(), name


@pytest.mark.parametrize(("root", "places"), [(PACKAGE, PLACES), (BENCHMARKS, PLACES_OF_BENCHMARKS)])
def test_a_builtin_error_is_raised_only_where_it_is_right(root: Path, places: dict[tuple[str, str], str]) -> None:
    found = {place for place in raised(root) if not issubclass(BUILTIN[place[1]], tuple(ANYWHERE))}
    assert found == set(places)


def test_the_tree_of_errors_is_the_one_that_its_docstring_draws() -> None:
    classes = {}  # by name: base and file
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                place = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
                classes[node.name] = ast.unparse(node.bases[0]), "" if place == "errors" else place

    def drawn(kind: str, depth: int) -> Iterator[tuple[str, int, str]]:
        yield kind, depth, classes[kind][1]
        for name, (base, _) in classes.items():
            if base == kind:
                yield from drawn(name, depth + 1)

    rows = re.findall(r"^( {4,})(\w+)(?: +(\S[^\n]*))?$", errors.__doc__ or "", re.MULTILINE)
    found = {(name, len(indent) // 4, "" if (note or "").startswith("also") else note) for indent, name, note in rows}
    assert found == {(name, depth + 1, place) for name, depth, place in drawn("UnlearnError", 0)}


def test_the_package_ends_no_process() -> None:
    assert [place for place in raised(PACKAGE) if place[1] == "SystemExit"] == []


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(UnlearnError, ValueError), (GuardrailNotReady, RuntimeError), (GuardrailUnsupported, NotImplementedError)],
)
def test_an_error_can_be_caught_without_this_package(error: type, builtin: type) -> None:
    assert issubclass(error, UnlearnError)
    assert issubclass(error, builtin)


@pytest.mark.parametrize(
    ("message", "subject"),
    [
        ("topk='all': expected None.", "topk"),
        ("statistic_kwargs.drift='x': expected a finite number.", "statistic_kwargs.drift"),
        ("forget, retain: expected the same rows.", "forget, retain"),
        ("forget=None, retain=None: expected rows.", "forget"),
        ("attention_mask['other']: expected 2-D.", "attention_mask['other']"),
        ("--model, --url: expected one of them.", "--model, --url"),
        ("/tmp/my.json: expected a list.", "/tmp/my.json"),
        ("The upload to me/forget did not finish: try again.", None),
        ("Features [3]: never active.", None),
        ("", None),
    ],
)
def test_an_error_has_the_argument_or_file_that_its_message_begins_with(message: str, subject: str | None) -> None:
    assert UnlearnError(message).subject == subject
    assert pickle.loads(pickle.dumps(GuardrailNotReady(message))).subject == subject
    with pytest.raises(GuardrailError) as caught, as_guardrail_error():
        raise UnlearnError(message)
    assert caught.value.subject == subject


def beginnings() -> Iterator[tuple[str, str]]:
    """Of each message in the package that begins with `name=value`, the name, and the message with values filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                first = node.exc.args[0]
                parts = first.values if isinstance(first, ast.JoinedStr) else [first]
                text = "".join(part.value if isinstance(part, ast.Constant) else "8" for part in parts)
                name = re.match(r"([a-z_][\w.]*)=", text)
                if name:
                    yield name[1], text


def test_every_message_about_an_argument_gives_it_as_the_subject() -> None:
    found = [*beginnings()]
    assert len(found) > 200
    assert [text for name, text in found if UnlearnError(text).subject != name] == []


OURS = {
    *("UnlearnError", "GuardrailError", "GuardrailNotReady", "GuardrailUnsupported"),
    *("AlignmentError", "SAEFormatError"),
}
VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
PROSE = re.compile(r"(?<![\w\\=./-])[a-z]+(?: [a-z]+){2,}(?![\w=/])")


def patterns(folder: Path) -> Iterator[tuple[str, str]]:
    """Where a test matches the message of an error of ours, and the pattern, without the values in it."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.args[0]).rpartition(".")[2] in OURS:
                for pattern in [keyword.value for keyword in node.keywords if keyword.arg == "match"]:
                    parts = pattern.values if isinstance(pattern, ast.JoinedStr) else [pattern]
                    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
                    yield f"{path.relative_to(folder)}:{node.lineno}", VALUE.sub("{}", text)


def test_tests_match_what_an_error_is_about_and_not_its_sentences() -> None:
    """Three plain words in a row are prose: match names, values and files, or the error's `subject`."""
    found = [*patterns(TESTS)]
    assert len(found) > 300
    assert [(place, text) for place, text in found if PROSE.search(text)] == []
    assert PROSE.search("the model has no layers")
    assert not PROSE.search("^model: .* got none")
