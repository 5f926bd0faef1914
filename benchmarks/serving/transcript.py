"""A guarded vLLM server on the demo's model, what it is asked, and what it answers, word for word.

    python -m benchmarks.serving.transcript FOLDER         # in the environment of `nox -s vllm`, with the demo's model

`FOLDER/forget-biology` is a guardrail of the demo's topic, fitted with `for_serving=True, store_probe=True` unless it
is there. Writes `benchmarks/results/serving_transcript.json`: each command line with its output. The folder of the
model stands there as `gemma-3-270m`.
"""

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from sae_unlearn.demo.model import demo_model_folder


RESULTS = Path(__file__).resolve().parents[1] / "results" / "serving_transcript.json"
PORT = 8000
URL = f"http://localhost:{PORT}"
MODEL = "gemma-3-270m"
TOPIC = "A living cell is surrounded by a thin membrane, and inside it the most important organelles are"
OTHER = "The capital of France is"
SERVE = (
    "sae-unlearn serve gemma-3-270m --adapter forget-biology --port 8000 --per-request --log firings.jsonl "
    "--dtype float32 -- --served-model-name gemma-3-270m --enforce-eager --max-model-len 1024 --max-num-seqs 8"
)
SAID = ("guardrail forget-biology", "Application startup complete")
"""Lines of the server's log that are kept, by what they contain."""


def completion(prompt: str, **fields: Any) -> str:
    """Return the curl command of a completion."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0} | fields
    return f"curl -s {URL}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


class Transcript:
    """Command lines and their outputs.

    Args:
        folder (Path): Where the commands run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.entries: list[dict[str, str]] = []

    def run(self, title: str, command: str, show: str | None = None) -> str:
        """Run a command line and note what it prints.

        Args:
            title (str): What it does.
            command (str): The command line.
            show (str, *optional*): Lines are kept that contain it. None: all.
        """
        words = command.replace("sae-unlearn", f"{sys.executable} -m sae_unlearn", 1)
        done = subprocess.run(words, shell=True, cwd=self._folder, capture_output=True, text=True, timeout=300)
        said = done.stdout if command.startswith("curl") else done.stdout + done.stderr
        kept = "\n".join(line for line in said.splitlines() if show is None or show in line)
        self.entries.append({"title": title, "command": command, "output": kept.strip(), "code": str(done.returncode)})
        print(self.entries[-1], flush=True)
        return done.stdout


def wait_for(process: "subprocess.Popen[bytes]", log: Path, seconds: float = 300) -> None:
    """Wait until the server listens.

    Raises:
        RuntimeError: If it ends or takes too long, with the end of its log.
    """
    deadline = time.monotonic() + seconds
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text()[-3000:])
        try:
            with urllib.request.urlopen(f"{URL}/health", timeout=10):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(1)


def ask(transcript: Transcript) -> None:
    """Send the requests and read records, metrics and the check."""
    transcript.run("The guardrails of the server", f"curl -s {URL}/sae_guardrail/guardrails")
    answer = json.loads(transcript.run("A prompt on the topic", completion(TOPIC)))
    transcript.run(
        "The same without the guardrail, which `--per-request` allows",
        completion(TOPIC, vllm_xargs={"sae_guardrail": ""}),
    )
    transcript.run("A prompt on another topic", completion(OTHER))
    unknown = completion(OTHER, vllm_xargs={"sae_guardrail": "forget-chemistry"})
    transcript.run("A guardrail that the server does not have", f"{unknown} -w '\\nHTTP %{{http_code}}'")
    transcript.run("The record of the first answer", f"curl -s '{URL}/sae_guardrail/records?request_id={answer['id']}'")
    transcript.run("Metrics", f"curl -s {URL}/metrics | grep ^sae_guardrail | grep -v _bucket")
    transcript.run("The check from outside", f"sae-unlearn check --url {URL} --adapter forget-biology")
    transcript.run("Metrics after it", f"curl -s {URL}/metrics | grep ^sae_guardrail:fired_total")
    transcript.run("The log, its first line", "head -n 1 firings.jsonl")


def fit(folder: Path) -> None:
    """Fit the demo's topic for a service, with stored rows, and save it."""
    from sae_unlearn import fit_guardrail
    from sae_unlearn.demo.model import load_demo_model, load_demo_sae
    from sae_unlearn.demo.texts import load_demo_texts

    (model, tokenizer), texts = load_demo_model(), load_demo_texts()
    options: dict[str, Any] = {"for_serving": True, "store_probe": True}
    fit_guardrail(model, tokenizer, load_demo_sae(), texts.forget, texts.retain, **options).save_pretrained(folder)


def main(folder: str) -> None:
    """Start the server, ask it, and write what was said."""
    import vllm

    out = Path(folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "forget-biology").is_dir():
        fit(out / "forget-biology")
    link, log = out / MODEL, out / "server.log"
    if not link.exists():
        link.symlink_to(demo_model_folder())
    (out / "firings.jsonl").unlink(missing_ok=True)
    words = [sys.executable, "-m", "sae_unlearn", *shlex.split(SERVE)[1:]]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with open(log, "w") as file:
        process = subprocess.Popen(words, cwd=out, env=environment, stdout=file, stderr=subprocess.STDOUT)
    transcript = Transcript(out)
    try:
        wait_for(process, log)
        said = [
            line[line.find("guardrail ") if "guardrail forget" in line else line.find("Application") :]
            for line in log.read_text().splitlines()
            if any(part in line for part in SAID)
        ]
        transcript.entries.append({"title": "The server", "command": SERVE, "output": "\n".join(said), "code": ""})
        ask(transcript)
    finally:
        process.terminate()
        process.wait(60)
    found = {"vllm": vllm.__version__, "entries": transcript.entries}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
