"""`sae-unlearn env`: what a bug report needs, as text and as JSON."""

import json
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers

from sae_unlearn import __version__
from sae_unlearn.cli import env
from sae_unlearn.cli.main import main


ROOT = Path(__file__).parents[2]


@pytest.fixture
def declared(monkeypatch):
    """What the installed package declares, whatever is installed here."""
    found = ["torch>=2.8", "transformers<6,>=5.16", 'scikit-learn>=1.5; extra == "eval"']
    monkeypatch.setattr(env.metadata, "requires", lambda name: found)
    return found


def as_json(capsys) -> dict:
    assert main(["env", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_versions_devices_and_formats(capsys, declared):
    found = as_json(capsys)
    assert found["sae_unlearn"] == __version__
    assert found["python"] == platform.python_version()
    assert found["formats"]["guardrail"] >= 1
    assert found["devices"]
    assert found["packages"]["torch"] == {
        "version": metadata.version("torch"),
        "required": True,
        "supported": ">=2.8",
        "in_range": True,
    }
    assert found["packages"]["scikit-learn"]["supported"] == ">=1.5"
    assert found["packages"]["peft"]["in_range"] is None


def test_text_has_a_line_for_each_and_names_no_path(capsys, declared):
    assert main(["env"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == f"{torch.__version__} (supported: >=2.8)"
    assert lines["transformers"] == f"{transformers.__version__} (supported: <6,>=5.16)"
    assert lines["peft"] == metadata.version("peft")
    assert {"sae_unlearn", "formats", "python", "platform", "device", *env.REQUIRED, *env.OPTIONAL} <= lines.keys()
    assert not any(re.search(r"/(home|root|tmp|usr)\b", line) for line in lines.values())


def test_a_version_outside_the_range_and_a_missing_package_are_marked(capsys, monkeypatch):
    monkeypatch.setattr(env.metadata, "requires", lambda name: ["torch>=99"])
    installed = env.installed_version
    monkeypatch.setattr(env, "installed_version", lambda name: None if name in ("peft", "vllm") else installed(name))
    assert as_json(capsys)["packages"]["torch"]["in_range"] is False
    main(["env"])
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == f"{torch.__version__} (OUTSIDE >=99)"
    assert lines["peft"] == "MISSING"
    assert lines["vllm"] == "not installed"


def test_a_bare_checkout_says_that_it_knows_no_ranges(capsys, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(env.metadata, "requires", absent)
    monkeypatch.setattr(env.metadata, "version", absent)
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    assert "not installed by pip" in said.splitlines()[0]
    assert "MISSING" in said


def test_the_required_packages_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(env.REQUIRED) == [re.match(r"[\w-]+", entry)[0] for entry in project["dependencies"]]
