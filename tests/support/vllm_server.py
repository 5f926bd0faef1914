"""`sae-unlearn serve` with vLLM in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

from served import ask


@contextmanager
def vllm_server(model, adapter, log, *options, seconds=500):
    """Start the server, and give its port once it listens.

    Args:
        model, adapter: For `sae-unlearn serve`.
        log: File for what it prints.
        options: More options; those of vLLM after `--`.
        seconds: Longest time until it listens.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sae_unlearn", "serve", model, "--adapter", adapter, "--port", port, *options]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + seconds
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if ask(port, "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(1)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # on a busy machine
            os.killpg(process.pid, signal.SIGKILL)


def metrics(port):
    """The metrics of the guardrails, by name and labels in one text."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("sae_guardrail:")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
