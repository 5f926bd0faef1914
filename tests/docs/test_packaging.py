"""What surrounds the package: the checks in `.ci`, the sessions that CI calls, and versions that are written twice."""

import ast
import importlib.machinery
import importlib.util
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def script(name):
    """A script of `.ci` as a module."""
    loader = importlib.machinery.SourceFileLoader(f"ci_{name}", str(ROOT / ".ci" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def versions(name):
    """The versions that a file of constraints holds, by distribution."""
    lines = (ROOT / ".ci" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.replace("_", "-").split("==") for line in lines if not line.startswith("#"))


def sessions():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    return {node.name for node in found}


# ---------------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture
def made(tmp_path):
    """A function that writes a wheel of the right files, changed as the caller says, and returns what is wrong."""
    checks = script("wheel")

    def make(leave_out=(), add=(), programs="sae-unlearn = a:b\nsae-unlearn-lm-eval = a:b\n"):
        path = tmp_path / "sae_unlearn-0.0.0-py3-none-any.whl"
        about = {"entry_points.txt": programs, "licenses/LICENSE": ""}
        with zipfile.ZipFile(path, "w") as archive:
            for name in (checks.source_files() | set(add)) - set(leave_out):
                archive.writestr(name, b"")
            for name, text in about.items():
                archive.writestr(f"sae_unlearn-0.0.0.dist-info/{name}", text)
        return checks.problems(path)

    return make


def test_a_wheel_with_the_package_and_nothing_else_passes(made):
    assert made() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leave_out": ["sae_unlearn/py.typed"]}, "sae_unlearn/py.typed is missing."),
        ({"leave_out": ["sae_unlearn/alignment/card_template.md"]}, "card_template.md is missing."),
        ({"add": ["tests/test_a.py"]}, "tests/test_a.py does not belong in it."),
        ({"add": ["benchmarks/__init__.py"]}, "benchmarks/__init__.py does not belong in it."),
        ({"programs": "sae-unlearn = a:b\n"}, "The program sae-unlearn-lm-eval is not declared."),
    ],
)
def test_a_wheel_with_more_or_less_is_refused(made, changes, said):
    assert any(sentence.endswith(said) for sentence in made(**changes))


def test_a_wheel_that_has_grown_is_refused(made, tmp_path):
    made()
    checks = script("wheel")
    checks.LARGEST = 10
    assert any(sentence.startswith("size=") for sentence in checks.problems(*tmp_path.glob("*.whl")))


# ---------------------------------------------------------------------------------------------------------------- audit


@pytest.fixture
def audit(tmp_path, capsys):
    """A function that runs `.ci/audit` with a pip-audit that prints what it is given: exit code, and what is said."""

    def run(answer):
        fake = tmp_path / "pip-audit"
        fake.write_text(f"#!{sys.executable}\nprint({answer!r})\n")
        fake.chmod(0o755)
        return script("audit").main([sys.executable, str(fake)]), capsys.readouterr().out

    return run


def finding(package, fixed):
    versions = str(fixed).replace("'", '"')
    vulnerability = f'{{"id": "X-1", "fix_versions": {versions}}}'
    return f'{{"dependencies": [{{"name": "{package}", "version": "1", "vulns": [{vulnerability}]}}]}}'


@pytest.fixture
def as_installed(monkeypatch):
    """`.ci/audit` finds torch as a need of the package, and pytest as none."""
    monkeypatch.setattr("subprocess.check_output", lambda *_, **__: '[{"torch": "1+cpu", "pytest": "1"}, ["torch"]]')


@pytest.mark.parametrize(
    ("package", "fixed", "code", "said"),
    [
        ("torch", ["2"], 1, "FAIL torch 1: X-1, fixed in 2"),
        ("torch", [], 0, "note torch 1: X-1, no fix yet"),
        ("pytest", ["2"], 0, "note pytest 1: X-1, fixed in 2"),
    ],
)
def test_what_users_have_and_can_upgrade_fails(audit, as_installed, package, fixed, code, said):
    found, printed = audit(finding(package, fixed))
    assert found == code
    assert said in printed


@pytest.mark.parametrize("answer", ["no connection", '{"dependencies": [{"name": "torch", "skip_reason": "unknown"}]}'])
def test_without_an_answer_nothing_fails_and_that_is_said(audit, as_installed, answer):
    code, printed = audit(answer)
    assert code == 0
    assert "Not audited" in printed


# --------------------------------------------------------------------------------------------------- sessions, versions


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_sessions_that_there_are(path):
    called = set()
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        called |= {*matrix.get("session", []), *(entry["session"] for entry in matrix.get("include", []))}
        for step in job["steps"]:
            words = re.match(r"nox -s ([\w ]+)", step.get("run", ""))
            called |= set(words[1].split()) if words else set()
    assert called <= sessions()
    assert called


def test_ci_runs_on_every_python_that_is_declared():
    declared = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)}
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert set(ci["jobs"]["tests"]["strategy"]["matrix"]["python"]) == declared


def test_pre_commit_and_ci_have_the_same_ruff():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    needed = {line for hook in repo["hooks"] for line in hook["additional_dependencies"] if line.startswith("ruff")}
    assert needed == {f"ruff=={versions('constraints')['ruff']}"}


@pytest.mark.parametrize("name", ["constraints", "lowest", "newest"])
def test_the_versions_that_are_tested_are_versions_that_are_accepted(name):
    extras = PROJECT["optional-dependencies"].values()
    declared = [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]
    held = versions(name)
    for requirement in declared:
        version = held.get(requirement.name.replace("_", "-"))
        assert version is None or version in requirement.specifier, requirement
