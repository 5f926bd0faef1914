"""What is printed to install something works: the package's name is on no registry."""

import json
import re
import tomllib
from importlib import metadata

import pytest
from pages import CARDS, PAGES, ROOT

from sae_unlearn import install


PRINTED = re.compile(r"pip install[^\n`&]*?sae[-_]unlearn(?!\[[\w{}]+\] @ git\+)")
CODE = [path for pattern in ("sae_unlearn/**/*", "examples/*", "benchmarks/*.py") for path in ROOT.glob(pattern)]
TEXTS = sorted({*PAGES, *CARDS, *CODE})


def test_nothing_prints_the_bare_name():
    asked = [path for path in TEXTS if path.suffix in (".py", ".md", ".ipynb", ".html")]
    assert len(asked) > 200
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in asked
        for line in path.read_text(encoding="utf-8").splitlines()
        for match in PRINTED.finditer(line)
    }
    assert not found


class Installed:
    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin


CHECKOUT = 'pip install ".[eval]" in a checkout of sae_unlearn'
GIT = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, CHECKOUT),
        (json.dumps({"url": "file:///somewhere", "dir_info": {}}), CHECKOUT),
        ("no JSON", CHECKOUT),
        (json.dumps(GIT), f'pip install "sae-unlearn[eval] @ git+https://example.org/x.git@{"a" * 40}"'),
    ],
)
def test_the_command_is_the_one_that_brought_the_package(monkeypatch, origin, command):
    monkeypatch.setattr(install, "distribution", lambda name: Installed(origin))
    assert install.install_command("eval") == command


def test_without_an_installation_it_is_the_checkouts(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(install, "distribution", absent)
    assert install.install_command("demo") == 'pip install ".[demo]" in a checkout of sae_unlearn'


def test_the_extras_that_are_named_are_there():
    named = {
        extra
        for path in (ROOT / "sae_unlearn").rglob("*.py")
        for extra in re.findall(r"install_command\([\"'](\w+)[\"']\)", path.read_text(encoding="utf-8"))
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"eval", "demo", "harness"} <= named <= project["optional-dependencies"].keys()
