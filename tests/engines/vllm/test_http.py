"""vLLM's own server with a guardrail, over HTTP: worker in a process of its own, records, refusals, settings."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from served import expected, prompts, save_guardrail
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_unlearn.engines.vllm.plugin import EXTENSION


pytestmark = pytest.mark.slow
ROWS = prompts(6, longest=100)


def ask(port, path, body=None):
    """Status and JSON of a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


@pytest.fixture(scope="module")
def server(tiny):
    """The port of a server of the tiny model with two guardrails, among which requests may choose."""
    words = {f"w{number}": number for number in range(512)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w511").save_pretrained(tiny / "gemma3")
    second = save_guardrail(tiny, tiny / "gemma3", "second", seed=3)
    settings = {"paths": [str(tiny / "guard"), str(second)], "per_request": True, "log": str(tiny / "log.jsonl")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--model", tiny / "gemma3", "--served-model-name", "tiny", "--port", port, "--dtype", "float32"]
    arguments += ["--enforce-eager", "--max-model-len", 256, "--max-num-seqs", 8, "--max-num-batched-tokens", 64]
    arguments += ["--additional-config", json.dumps({"sae_guardrail": settings}), "--worker-extension-cls", EXTENSION]
    environment = os.environ | {"VLLM_PLUGINS": "sae_unlearn", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, arguments)]
    with open(tiny / "server.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None, (tiny / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            try:
                if ask(port, "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def test_answers_records_and_choices(server, tiny):
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    both = [tiny / "guard", tiny / "second"]
    for choice, on in ((None, both), ("second", both[1:]), ("", [])):
        extra = {} if choice is None else {"vllm_xargs": {"sae_guardrail": choice}}
        for row, (tokens, records) in zip(ROWS, expected(tiny / "gemma3", on, ROWS, tokens=8), strict=True):
            status, answer = ask(server, "/v1/completions", {**body, "prompt": row, **extra})
            assert status == 200, answer
            assert answer["choices"][0]["token_ids"] == tokens
            _, found = ask(server, f"/sae_guardrail/records?request_id={answer['id']}")
            (by_guardrail,) = found.values()
            for name, (fired, at_token, evidence, count) in records.items():
                record = by_guardrail[name]
                assert (record["fired"], record["at_token"]) == (fired, at_token)
                assert (record["evidence"], record["tokens"]) == (evidence, count)
    status, answer = ask(server, "/v1/completions", {**body, "prompt": ROWS[0], "vllm_xargs": {"sae_guardrail": "x"}})
    assert status == 400
    assert "'x'" in json.dumps(answer)
    assert ask(server, "/v1/completions", {**body, "prompt": ROWS[0]})[0] == 200
    lines = [json.loads(line) for line in (tiny / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 3 * len(ROWS)
    assert {name for line in lines for name in line["guardrails"]} == {"guard", "second"}
