"""`sae-unlearn chat` in a real terminal: typing, both answers, the gate, switches, Ctrl-C, and the end."""

import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playground_setting import PROMPT
from tiny_topic import save_adapters


pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs rich"),
]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def hear_interrupts():
    """Let a process hear Ctrl-C, as in a terminal: one that runs behind a shell's `&` is started deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process in a pseudo-terminal of 100 columns."""

    def __init__(self, *command, **options):
        self.own, other = pty.openpty()
        env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "ignore"}
        files = {"stdin": other, "stdout": other, "stderr": other}
        self.process = subprocess.Popen(
            command, **files, env=env, start_new_session=True, preexec_fn=hear_interrupts, **options
        )
        os.close(other)
        self.raw = ""

    def wait_for(self, pattern, seconds=120):
        """Return what came up to the end of the pattern."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            match = re.search(pattern, self.text)
            if match:
                shown, self.raw = self.text[: match.end()], self.text[match.end() :]
                return shown
            if select.select([self.own], [], [], 0.2)[0] and not self.read():
                break
        raise AssertionError(f"no {pattern!r} in {self.text!r}")

    def read(self):
        """Read what is there; False at the end, which is an error of the device once the process has ended."""
        try:
            found = os.read(self.own, 65536)
        except OSError:
            return False
        self.raw += found.decode(errors="replace")
        return bool(found)

    def rest(self):
        """Return all that an ended process has written since the last pattern."""
        while self.read():
            pass
        return self.text

    @property
    def text(self):
        return ESCAPES.sub("", self.raw)

    def type(self, line):
        os.write(self.own, f"{line}\n".encode())

    def interrupt(self, tries=4):
        """Press Ctrl-C until the process ends: Python misses one between its last check and the read of a line."""
        for _ in range(tries):
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                return self.process.wait(15)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(f"the process goes on after {tries} Ctrl-C")

    def close(self):
        self.process.kill()
        self.process.wait(10)
        os.close(self.own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("chat")
    save_adapters(found)
    return found


@pytest.fixture
def terminal(folder):
    command = [sys.executable, "-m", "sae_unlearn", "chat", "model", "guardrail", "--max-new-tokens", "6"]
    found = Terminal(*command, cwd=folder)
    found.wait_for(r"/quit\s+> ")
    yield found
    found.close()


def test_a_prompt_is_answered_twice_and_switches_hold_until_they_are_changed(terminal):
    terminal.type(PROMPT)
    shown = terminal.wait_for(r"gate (fires|does not fire): [\d.e-]+, threshold [\d.]+")
    assert "bare" in shown
    assert "with the guardrail" in shown
    terminal.wait_for("> ")
    terminal.type("/off")
    terminal.wait_for(r"enabled=False[\s\S]*> ")
    terminal.type(PROMPT)
    assert "guardrail off" in terminal.wait_for("gate ")
    terminal.wait_for("> ")
    terminal.type("/dose two")
    terminal.wait_for("expected another value")
    terminal.wait_for("> ")
    terminal.type("/quit")
    assert terminal.process.wait(120) == 0


def test_control_c_and_control_d_end_it_without_a_traceback(terminal):
    assert terminal.interrupt() in (130, -signal.SIGINT)
    assert "Traceback" not in terminal.rest()


def test_the_end_of_the_input_ends_it(terminal):
    os.write(terminal.own, b"\x04")
    assert terminal.process.wait(120) == 0
