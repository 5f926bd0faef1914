"""What holds of every command: help, versions, errors in one line, interrupts."""

import subprocess
import sys

import pytest
from commands import fails

from sae_unlearn import __version__
from sae_unlearn.cli.main import COMMANDS, main
from sae_unlearn.errors import UnlearnError


def test_help_and_version(capsys):
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"sae-unlearn {__version__}\n"


def test_only_what_is_built_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = capsys.readouterr().out.split("COMMAND\n")[1].split("options:")[0]
    assert [line.split()[0] for line in commands.splitlines() if line.startswith("    ") and line[4] != " "] == [
        "demo",
        "saes",
        "train-sae",
        "scout",
        "fit",
        "train",
        "evaluate",
        "audit",
        "show",
        "tune",
        "chat",
        "playground",
        "check",
        "serve",
        "env",
    ]


def test_usage_errors_are_one_line(capsys):
    fails(capsys, ["fit"], "required: --model, --sae, --output", "see sae-unlearn fit --help")
    fails(capsys, ["learn"], "invalid choice: 'learn'")
    fails(capsys, [], "COMMAND")


def test_debug_shows_the_error(tmp_path):
    with pytest.raises(UnlearnError, match=r"has no adapter_config\.json"):
        main(["show", str(tmp_path), "--debug"])


def test_an_unexpected_error_is_named(monkeypatch, capsys):
    def fail(args):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("sae_unlearn.cli.show.run", fail)
    fails(capsys, ["show", "x"], "RuntimeError: out of memory (--debug shows where)")


def test_interrupting_is_no_error_of_the_program(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_unlearn.cli.show.run", interrupt)
    assert main(["show", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_demo_without_its_packages_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAE_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sae_unlearn.demo.model._NEEDED", ("surely_not_installed",))
    fails(capsys, ["demo", "--output", tmp_path / "out"], 'pip install ".[demo]"')


@pytest.mark.slow
def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sae_unlearn", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"sae-unlearn {__version__}\n")
