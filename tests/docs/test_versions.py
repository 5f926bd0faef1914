"""The supported window: what README, the docs and the lowest versions of CI say is what `pyproject.toml` asks for."""

import re
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[2]


def requirements(*extras):
    """What pip asks for, by distribution: the package's requirements, and those of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    listed = [each for entries in lists for each in entries if not each.startswith("sae-unlearn[")]
    return {re.split(r"[><=\[]", each)[0]: each for each in listed}


def pinned_in(file):
    lines = (ROOT / ".ci" / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_readme_and_docs_state_the_window_of_the_package():
    core = requirements()
    for page in ("README.md", "docs/versions.md"):
        text = (ROOT / page).read_text()
        for name in ("transformers", "peft", "torch"):
            stated = re.findall(rf"\b{name} (>=\d[\d.]*\d(?:,<\d[\d.]*)?)", text)
            assert stated, (page, name)
            assert set(stated) == {core[name].removeprefix(name)}, page


def test_the_lowest_versions_of_ci_are_the_floors_of_the_package():
    pins, built = pinned_in("lowest.txt"), pinned_in("constraints.txt")
    assert pins["torch"] == built["torch"]  # one build for all
    for name, asked in requirements("test", "eval").items():
        if name != "torch":
            floor = re.search(r">=([\d.]+)", asked).group(1).split(".")
            lowest = pins[name].split(".")
            assert lowest[: len(floor)] == floor, asked
            assert set(lowest[len(floor) :]) <= {"0"}, asked
