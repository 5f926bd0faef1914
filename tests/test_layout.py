"""The tests lie where the code lies, and every file is short enough to be read at once."""

from pathlib import Path

import pytest
from tiers import TESTS


ROOT = TESTS.parent
PACKAGE = ROOT / "sae_unlearn"
# Folders of tests that mirror a folder next to the package, or nothing, and why.
OTHERS = {
    "benchmarks": "mirrors benchmarks/",
    "benchmarks/representation": "mirrors benchmarks/representation/",
    "docs": "tests of docs/, README.md, noxfile.py and .ci/",
    "examples": "runs examples/",
    "support": "what the tests share: tiny models, a stand-in for the Hub, oracles",
}


LONGEST = {"sae_unlearn": 299, "benchmarks": 400, "examples": 400, "tests": 400}
"""Lines of a file of Python, at most."""


def folders_with(pattern: str, root: Path) -> set[str]:
    """The folders below `root` that hold such files, as paths relative to it."""
    return {path.parent.relative_to(root).as_posix() for path in root.rglob(pattern)}


def test_each_folder_of_the_package_has_a_folder_of_tests():
    assert sorted(folders_with("*.py", PACKAGE) - folders_with("test_*.py", TESTS)) == []


def test_each_folder_of_tests_is_of_a_folder_or_a_module_of_the_package():
    known = folders_with("*.py", PACKAGE)
    modules = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    assert folders_with("*.py", TESTS) - known - modules == OTHERS.keys()


def test_folders_that_mirror_another_have_one():
    assert [name for name in OTHERS if name != "support" and not (ROOT / name).is_dir()] == []


@pytest.mark.parametrize("folder", LONGEST)
def test_no_file_is_longer_than_can_be_read_at_once(folder):
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert [str(path) for path, number in lines.items() if number > LONGEST[folder]] == []
