"""The supported window: what README, the docs and the lowest versions of CI say is what `setup.py` asks for."""

import ast
import re
from pathlib import Path


ROOT = Path(__file__).parents[2]


def requirements(name="CORE"):
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            listed = [each for each in node.value.elts if isinstance(each, ast.Constant)]
            return {re.split(r"[><=\[]", each.value)[0]: each.value for each in listed}
    raise AssertionError(name)


def pinned_in(file):
    lines = (ROOT / ".ci" / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_readme_and_docs_state_the_window_of_setup_py():
    core = requirements()
    for page in ("README.md", "docs/versions.md"):
        text = (ROOT / page).read_text()
        for name in ("transformers", "peft", "torch"):
            stated = re.findall(rf"\b{name} (>=\d[\d.]*\d(?:,<\d[\d.]*)?)", text)
            assert stated, (page, name)
            assert set(stated) == {core[name].removeprefix(name)}, page


def test_the_lowest_versions_of_ci_are_the_floors_of_setup_py():
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    built = dict(
        line.split("==") for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert pins["torch"] == built["torch"]  # one build for all
    for name, asked in {**requirements(), **requirements("TEST"), **requirements("EVAL")}.items():
        if name != "torch":
            floor = re.search(r">=([\d.]+)", asked).group(1).split(".")
            lowest = pins[name].split(".")
            assert lowest[: len(floor)] == floor, asked
            assert set(lowest[len(floor) :]) <= {"0"}, asked
