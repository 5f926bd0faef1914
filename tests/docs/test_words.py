"""The word list of `.ci/words`, and what is held to it; the forms for issues."""

import importlib.util
from importlib.machinery import SourceFileLoader

import pytest
import yaml
from pages import CARDS, ROOT


loader = SourceFileLoader("ci_words", str(ROOT / ".ci" / "words"))
ci_words = importlib.util.module_from_spec(importlib.util.spec_from_loader("ci_words", loader))
loader.exec_module(ci_words)
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def words(text: str) -> list[str]:
    return [word for _, word, _ in ci_words.findings(text)]


def test_the_files_that_are_held_are_free_of_them(capsys) -> None:
    assert ci_words.main([]) == 0, capsys.readouterr().out


def test_the_files_that_are_held() -> None:
    held = set(ci_words.held())
    assert {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *CARDS} <= held
    assert {ROOT / "sae_unlearn" / "checks.py", ROOT / "sae_unlearn" / "files" / "hub.py"} <= held
    assert {path.suffix for path in held} == {".md", ".in", ".py"}
    assert all(list(ROOT.glob(pattern)) for pattern in ci_words.HELD)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is put on the model.", ["put on"]),
        ("Both are in\nforce.", ["in force"]),
        ("Whoever holds it takes it.", ["Whoever"]),
        ("There is no reason; it is no longer there.", ["is no"]),
        ("What hangs on it could be had.", ["could be had", "hangs on"]),
        ("The behaviour of a neighbour, modelled.", ["behaviour", "neighbour", "modelled"]),
        ("The fit is normalised.", ["normalised"]),
        ("Besides, it told nothing of the mended.", ["mended", "told"]),
    ],
)
def test_they_are_found(text, found) -> None:
    assert sorted(words(text)) == sorted(found)


@pytest.mark.parametrize(
    "text",
    [
        "`put on` and [a link](told.md) and https://a.org/told",
        "```\nit is told\n```\n",
        "    told in an indented block",
        "<!-- told -->{# told #}{{ told }}",
        "The output is not a table; it depends on the row, besides the threshold.",
    ],
)
def test_other_text_is_not(text) -> None:
    assert words(text) == []


def test_lines_are_counted_over_what_is_skipped() -> None:
    assert [line for line, _, _ in ci_words.findings("# A\n\n```\nx\n```\n\ntold\n")] == [7]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""It is\nat rest."""', ["at rest"]),
        ('x = 1  # told\ny = f"{told} nobody {x}"', ["nobody", "told"]),
        ('raise E(\n    "what is put "\n    f"on {x}"\n)', ["put on"]),
        ('"""What a model forgot."""', ["What"]),
        (f'"""{"a" * 101}"""', ["a" * 101]),
        (f'raise E(f"{{x}}" "{"b" * 201}")', ["b" * 201]),
        ('NAMES = ["told", "nobody"]; told = beside  # `told`', []),
        ('"""Return\n\n        told_rows x `put on`."""', []),
    ],
)
def test_in_python_only_prose_is_read(source, found) -> None:
    assert sorted(word for _, word, _ in ci_words.python_findings(source)) == sorted(found)


def test_lines_of_python_are_counted() -> None:
    assert [line for line, _, _ in ci_words.python_findings('"""A."""\n\n\nx = "it is\ttold"\n')] == [4]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_forms_have_the_fields_that_github_needs(form) -> None:
    read = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name == "config.yml":
        assert read["blank_issues_enabled"] is False
        return
    assert {"name", "description", "body"} <= set(read)
    fields = [part for part in read["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)


def test_the_form_for_bugs_asks_for_the_environment() -> None:
    read = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    [asked] = [part for part in read["body"] if "sae-unlearn env" in part["attributes"].get("label", "")]
    assert asked["validations"]["required"]
