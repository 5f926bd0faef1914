"""What the documentation says is there, is there: code, commands, options, fields, pages and links."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import json
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml
from hub_metadata import metadata_errors
from pages import CARDS, DOCS, PAGES, ROOT, Block, blocks, commands, prose
from peft import PeftConfig

from sae_unlearn import SAEGuardrailConfig
from sae_unlearn.cli.main import build_parser
from sae_unlearn.guardrail import GuardrailFitConfig
from sae_unlearn.options.alignment import AlignmentOptions
from sae_unlearn.options.field import options_of


NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
PYTHON = blocks("python")
COMMANDS = [
    pytest.param(call, id=f"{block} {number}")
    for block in blocks("bash")
    for number, call in enumerate(commands(block), 1)
]
PUBLIC = (
    "sae_unlearn",
    "sae_unlearn.sae",
    "sae_unlearn.guardrail",
    "sae_unlearn.alignment",
    "sae_unlearn.evaluation",
    "sae_unlearn.evaluation.datasets",
)
LAYOUT = ("architecture", "add-an-sae-format")
"""Pages that name modules by their path in the package."""
_LINK = re.compile(r"\]\(([^()\s]+)\)")


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_imports_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text, str(block))
    for name, value in imported(tree).items():
        assert value is not None, name


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_imports_from_public_packages(block: Block) -> None:
    modules = {node.module for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name and name.split(".")[0] == "sae_unlearn"} <= set(PUBLIC)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_calls_with_arguments_that_there_are(block: Block) -> None:
    """Calls of this package's functions and classes, on the names that the page imports anywhere."""
    known: dict[str, Any] = {}
    for other in PYTHON:
        if other.page == block.page:
            known |= imported(ast.parse(other.text))
    for call in [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]:
        called = resolve(call.func, known)
        starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
        if called is None or starred:
            continue
        signature = inspect.signature(called)
        try:
            signature.bind(*call.args, **{keyword.arg: None for keyword in call.keywords})
        except TypeError as error:
            pytest.fail(f"{block}: {ast.unparse(call)}: {error}; it is {signature}")


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("call", COMMANDS)
def test_commands_parse(call: list[str], capsys: pytest.CaptureFixture) -> None:
    try:
        build_parser().parse_args(call)
    except SystemExit:
        pytest.fail(f"sae-unlearn {' '.join(call)}: {capsys.readouterr().err}")


def test_a_commit_in_an_example_is_a_whole_one_or_a_place_for_it() -> None:
    """The Hub knows a commit by all of its 40 digits only."""
    texts = {str(page): page.read_text(encoding="utf-8") for page in [*PAGES, *CARDS]}
    texts |= {str(path): path.read_text(encoding="utf-8") for path in (ROOT / "sae_unlearn").rglob("*.py")}
    given = re.compile(r"""\brevision(?:=|\s+)\\?["']?([0-9a-f]{4,}|<[^>]*>|its commit)(?![\w-])""")
    found = [(place, value) for place, text in texts.items() for value in given.findall(text)]
    assert len(found) > 5
    assert not [pair for pair in found if pair[1] != "<commit>" and len(pair[1]) != 40]


def test_every_option_is_on_the_page_of_its_command() -> None:
    everywhere = (DOCS / "api/command-line.md").read_text().partition("## Of all commands")[2]
    parser = build_parser()
    found = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    pages = {path.stem: path.read_text() for path in (DOCS / "api/commands").glob("*.md")}
    assert set(pages) == set(found)
    for name, command in found.items():
        told = set(re.findall(r"`(--[a-z-]+)`", pages[name] + everywhere))
        there = {o for a in command._actions for o in a.option_strings if o.startswith("--")} - {"--help"}
        assert told == there, name


@pytest.mark.parametrize(("page", "options"), [("fit", GuardrailFitConfig), ("train", AlignmentOptions)])
def test_a_task_page_has_the_defaults_of_the_options(page, options) -> None:
    """The tables of the options that most users need are written by hand."""
    there = {each.name: each for each in options_of(options)}
    table = (DOCS / f"{page}.md").read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", table, re.MULTILINE)
    assert len(rows) >= 10
    for names, told in rows:
        named = re.findall(r"\w+", names)
        defaults = re.sub(r'[`"]', "", told).partition(";")[0].split(", ")
        for name, default in zip(named, defaults if len(defaults) > 1 else defaults * len(named), strict=True):
            kept, shown = there[name].default, there[name].shown.partition(";")[0]
            expected = f"{kept:g}" if isinstance(kept, float) else shown or {False: "no", None: "none"}[kept]
            assert re.search(rf"(?<![\w.]){re.escape(default)}(?![\w.])", expected), f"{name}: {expected}"


def test_every_field_of_the_config_is_on_the_page_of_guardrails() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "api/guardrail.md").read_text(), re.MULTILINE))
    assert told == {field.name for field in fields(SAEGuardrailConfig)} - {field.name for field in fields(PeftConfig)}


def test_the_reference_names_all_that_is_public_and_nothing_else_by_its_public_path() -> None:
    packages = {package: importlib.import_module(package) for package in PUBLIC}
    described = []
    for path in re.findall(r"^::: (\S+)", "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md")), re.M):
        home, _, name = path.rpartition(".")
        if home in packages:
            assert name in packages[home].__all__, path
        else:  # the site's generator takes `evaluation.audit` for the package: it needs the function's own path
            home = next(package for package, module in packages.items() if name in module.__all__)
            assert importlib.util.find_spec(f"{home}.{name}"), f"{path}: write {home}.{name}"
            assert getattr(packages[home], name) is getattr(importlib.import_module(path.rpartition(".")[0]), name)
        described.append(getattr(packages[home], name))
    for package, module in packages.items():
        public = {name: getattr(module, name) for name in module.__all__ if name != "__version__"}
        missing = [name for name, value in public.items() if not any(value is one for one in described)]
        assert not missing, f"of {package}, docs/api says nothing of {missing}"


def beside(name: str) -> Any:
    """A script of the site's."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_options_are_what_the_code_has() -> None:
    tables, stale = beside("option_tables"), "run: python docs/option_tables.py"
    assert tables.COMMAND_LINE.read_text(encoding="utf-8") == tables.command_line_page(), stale
    for path, page in tables.command_pages().items():
        assert path.read_text(encoding="utf-8") == page, stale
    assert tables.FIT.read_text(encoding="utf-8") == tables.fit_page(), stale
    assert tables.ALIGNMENT.read_text(encoding="utf-8") == tables.alignment_page(), stale
    assert tables.GUARDRAIL.read_text(encoding="utf-8") == tables.guardrail_page(), stale


def test_names_that_share_a_description_each_have_it_on_the_site() -> None:
    pytest.importorskip("griffe")
    module = beside("joint_parameters")
    text = (
        "What.\n\n    a, b: no section\n\nArgs:\n    a, **b: one,\n        two.\n    c: three\n\nReturns:\n    a, b: no"
    )
    found = module.apart(text)
    assert found.split("Args:\n")[1] == (
        "    a: one,\n        two.\n    **b: one,\n        two.\n    c: three\n\nReturns:\n    a, b: no"
    )
    assert found.startswith("What.\n\n    a, b: no section\n")


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(pages_of(NAV)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page) -> None:
    text = prose(page)
    links = [link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    for link in links:
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not page.is_relative_to(DOCS) or path.is_relative_to(DOCS), f"{link} leads out of the site"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page) -> None:
    named = re.findall(r"`((?:sae_unlearn|benchmarks|examples|tests|model_cards)/[\w./-]+)`", prose(page))
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.skipif(not (ROOT / "sae_unlearn/guardrail/runtime").is_dir(), reason="names the layout to come")
@pytest.mark.parametrize("page", ["CONTRIBUTING", *(f"docs/{name}" for name in LAYOUT)])
def test_the_layout_that_is_described_is_there(page) -> None:
    text = prose(ROOT / f"{page}.md")
    named = re.findall(r"`((?:guardrail|alignment|evaluation|sae|backbone|cli|files)/[\w./-]*)`", text)
    assert named
    for name in named:
        path = ROOT / "sae_unlearn" / name
        assert path.exists() or path.with_suffix(".py").exists(), name


@pytest.mark.parametrize(
    ("shown", "used"),
    {
        "guardrail": "guardrail/storage/card_template.md",
        "bundle": "guardrail/bundles/card_template.md",
        "bundle-lora": "guardrail/bundles/lora_card_template.md",
        "alignment": "alignment/card_template.md",
    }.items(),
)
def test_the_templates_in_model_cards_are_those_that_are_used(shown, used) -> None:
    found = ROOT / "model_cards" / f"{shown}-template.md"
    assert found.read_text(encoding="utf-8") == (ROOT / "sae_unlearn" / used).read_text(encoding="utf-8")


@pytest.mark.parametrize("card", sorted((ROOT / "model_cards").glob("*/README.md")), ids=lambda card: card.parent.name)
def test_the_card_that_is_shown_is_of_the_template_and_its_metadata_are_sound(card) -> None:
    text = card.read_text(encoding="utf-8")
    assert metadata_errors(text) == ([], [])
    lines = (ROOT / "model_cards/guardrail-template.md").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "{{" not in line and line not in text.splitlines()]
    assert all((card.parent / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))


def imported(tree: ast.AST) -> dict[str, Any]:
    """What a block imports from this package, by name; None where it is not there."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sae_unlearn":
            module = importlib.import_module(node.module)
            found |= {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
    return found


def resolve(node: ast.expr, known: dict[str, Any]) -> Any:
    """The function that is called: `name` or `name.attribute` of what was imported; None for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
        return getattr(known[node.value.id], node.attr)
    return None


def pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [page for value in values for page in pages_of(value)]


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    kept = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_is_short_and_its_lines_are(page) -> None:
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(DOCS).as_posix()
    assert len(text.encode()) <= 8192
    wide = [line for line in prose(page).splitlines() if len(line) > 100 and not line.startswith(("|", "![", "## `"))]
    assert not wide or name.startswith("api/")
