"""Before and after a command: help imports nothing heavy, bars are slow in a log, and the next command is named."""

import subprocess
import sys

import pytest

from sae_unlearn.cli.main import COMMANDS, main


HEAVY = ("torch", "transformers", "peft", "numpy", "huggingface_hub", "tqdm")
SAYS_WHAT_IS_LOADED = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", [name for name in {HEAVY} if name in sys.modules]))
sys.argv[0] = "/usr/bin/sae-unlearn"
from sae_unlearn.cli.main import main
sys.exit(main())
"""


def run(code, *arguments, **environment):
    """A fresh interpreter's exit code, stdout and stderr."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS), ["fit"]])
def test_help_and_wrong_options_import_nothing_heavy(arguments):
    code, out, _ = run(SAYS_WHAT_IS_LOADED, *arguments)
    assert code == (2 if arguments == ["fit"] else 0)
    assert out.splitlines()[-1] == "loaded: []"


def test_as_a_module_it_is_as_light():
    command = [sys.executable, "-X", "importtime", "-m", "sae_unlearn", "fit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sae_unlearn.options.fit" in imported
    assert not imported.intersection(HEAVY)


@pytest.mark.parametrize("name", ["/usr/bin/mine", "-c", "", "/opt/sae-unlearn-lm-eval"])
def test_importing_the_package_registers_with_peft_in_any_other_program(name):
    code, out, err = run(
        f"import sys; sys.argv[0] = {name!r}; import sae_unlearn; from peft import PeftType; print('SAE_GUARDRAIL' in "
        "PeftType.__members__, 'sae_unlearn.guardrail' in sys.modules)"
    )
    assert (code, out) == (0, "True True\n"), err


def test_in_the_command_the_names_of_the_package_are_there_all_the_same():
    code, out, err = run(
        "import sys; sys.argv[0] = 'sae-unlearn'; import sae_unlearn; assert 'torch' not in sys.modules; "
        "print([getattr(sae_unlearn, name).__name__ for name in sae_unlearn.__all__ if name != '__version__'] == "
        "[name for name in sae_unlearn.__all__ if name != '__version__']); import peft; "
        "print('SAE_GUARDRAIL' in peft.PeftType.__members__)"
    )
    assert (code, out) == (0, "True\nTrue\n"), err


def test_a_command_that_runs_has_registered_with_peft(tmp_path):
    code = (
        "import sys; sys.argv[0] = 'sae-unlearn'\n"
        "from sae_unlearn.cli import main, show\n"
        "def run(args):\n"
        "    import peft\n"
        "    print('SAE_GUARDRAIL' in peft.PeftType.__members__)\n"
        "    return 0\n"
        "show.run = run\n"
        "sys.exit(main.main(['show', 'x']))\n"
    )
    done, out, err = run(code)
    assert (done, out.splitlines()[0]) == (0, "True"), err


NEXT = {
    "demo": (["--output=o"], "check --model demo --adapter o/forget-biology"),
    "saes": (["m"], None),
    "train-sae": (
        ["--model=m", "--texts", "t", "--output=o"],
        "fit --model m --sae o --forget TOPIC --retain OTHER --output FOLDER",
    ),
    "scout": (["--model=m", "--forget=f", "--retain=r"], None),
    "tune": (["a"], None),
    "chat": (["m", "a"], None),
    "playground": (["m", "a"], None),
    "fit": (["--model=m", "--sae=s", "--output=o"], "check --model m --adapter o"),
    "train": (
        ["--model=m", "--sae=s", "--targets=t", "--output=o"],
        "evaluate --model m --adapter o --forget QUESTIONS --compare --output report",
    ),
    "evaluate": (
        ["--model=m", "--adapter=a", "--adapter-subfolder=b", "--forget", "f g", "h", "--output=o"],
        "audit --model m --adapter a --adapter-subfolder b --forget 'f g' h --output o/audit",
    ),
    "audit": (["--model=m", "--adapter=a", "--forget=f", "--output=o"], "check --model m --adapter a"),
    "show": (["a", "--adapter-subfolder=b"], "check --model MODEL --adapter a --adapter-subfolder b"),
    "check": (["m", "a"], "evaluate --model m --adapter a --forget QUESTIONS --output report"),
    "serve": (["m", "--adapter=a"], None),
    "env": ([], None),  # what it prints goes elsewhere as it is
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [0, 1])
def test_every_command_ends_with_the_next_one(command, code, monkeypatch, capsys):
    from sae_unlearn.cli.main import build_parser

    arguments, expected = NEXT[command]
    monkeypatch.setattr(COMMANDS[command], "run", lambda args: code)
    assert main([command, *arguments]) == code
    assert capsys.readouterr().out == (f"\nNext: sae-unlearn {expected}\n" if expected else "")
    if expected:
        build_parser().parse_args(expected.replace("'f g'", "f").split())


@pytest.mark.parametrize(("terminal", "expected"), [(True, None), (False, "30")])
def test_progress_bars_are_slow_where_no_terminal_shows_them(monkeypatch, terminal, expected):
    import os

    monkeypatch.setattr("sae_unlearn.cli.show.run", lambda args: 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert main(["show", "x"]) == 0
    assert [os.environ.get(name) for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL")] == [expected] * 2


def test_tqdm_reads_how_slow_it_is_to_be():
    code, out, _ = run(
        "import os; os.environ['TQDM_MININTERVAL'] = '30'; os.environ['TQDM_MAXINTERVAL'] = '30'; "
        "from tqdm.auto import tqdm; bar = tqdm(range(3)); print(bar.mininterval, bar.maxinterval)"
    )
    assert (code, out) == (0, "30.0 30.0\n")


def test_a_shell_is_answered_what_could_come_next(tmp_path):
    pytest.importorskip("argcomplete", reason='needs the extra "completion"')
    line = "sae-unlearn fit --num"
    answer = tmp_path / "answer"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    code, _, err = run(f"import os; os.environ.update({environment!r})\n" + SAYS_WHAT_IS_LOADED)
    assert code == 0, err
    assert sorted(answer.read_text().split()) == ["--num-features", "--num-gate-features"]


def test_completion_is_asked_of_argcomplete_and_may_be_missing(monkeypatch):
    from types import SimpleNamespace

    from sae_unlearn.cli import main as command

    asked = []
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setattr("sae_unlearn.cli.show.run", lambda args: 0)
    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=asked.append))
    assert command.main(["show", "x"]) == 0
    assert [type(parser).__name__ for parser in asked] == ["Parser"]
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert command.main(["show", "x"]) == 0
