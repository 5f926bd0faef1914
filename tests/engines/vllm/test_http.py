"""vLLM's own server with a guardrail, over HTTP: worker in a process of its own, records, refusals, settings."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from served import ask, expected, prompts, save_guardrail
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_unlearn.cli.main import main


pytestmark = pytest.mark.slow
ROWS = prompts(6, longest=100)


def save_bundle(folder, guardrails):
    """Save guardrails as a bundle, each with a probe of two rows on which it fires and two on which it does not."""
    folder.mkdir()
    for path in guardrails:
        config = json.loads((path / "adapter_config.json").read_text())
        answers = [records[path.name] for _, records in expected(folder.parent / "gemma3", [path], ROWS, tokens=1)]
        rows = {
            role: [row for row, (fired, *_) in zip(ROWS, answers, strict=True) if fired == (role == "forget")][:2]
            for role in ("forget", "retain")
        }
        config["calibration"] = {"probe": rows}
        config["calibration"] |= {f"statistic_{role}": [float(role == "forget")] * len(rows[role]) for role in rows}
        config.pop("config_sha256", None)
        shutil.copytree(path, folder / path.name)
        (folder / path.name / "adapter_config.json").write_text(json.dumps(config))
    index = {"format_version": 1, "guardrails": [path.name for path in guardrails], "lora": None}
    (folder / "bundle.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def server(tiny):
    """The port of `sae-unlearn serve` with a bundle of two guardrails, among which requests may choose."""
    words = {f"w{number}": number for number in range(512)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w511").save_pretrained(tiny / "gemma3")
    second = save_guardrail(tiny, tiny / "gemma3", "second", seed=3)
    bundle = save_bundle(tiny / "bundle", [tiny / "guard", second])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ["--adapter", bundle, "--port", port, "--dtype", "float32", "--per-request", "--log", tiny / "log.jsonl"]
    engine = ["--served-model-name", "tiny", "--enforce-eager", "--max-model-len", 256, "--max-num-seqs", 8]
    engine += ["--max-num-batched-tokens", 64]
    command = [sys.executable, "-m", "sae_unlearn", "serve", tiny / "gemma3", *own, "--", *engine]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    with open(tiny / "server.log", "w") as log:
        process = subprocess.Popen([*map(str, command)], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 200
        while True:
            assert process.poll() is None, (tiny / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tiny / "server.log").read_text()[-3000:]
            try:
                if ask(port, "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def metrics(port):
    """The metrics of the guardrails, by name and labels in one text."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("sae_guardrail:")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_it_was_checked_before_it_took_traffic(server, tiny):
    said = (tiny / "server.log").read_text()
    checked = said.index("guardrail second: it fired on 2 of 2 stored rows on the topic and 0 of 2 stored other rows")
    assert checked < said.index("Application startup complete")
    _, found = ask(server, "/sae_guardrail/guardrails")
    assert [one["name"] for one in found["guardrails"]] == ["guard", "second"]
    assert "as at the fit" in found["guardrails"][0]["check"]
    before = metrics(server)
    assert before['sae_guardrail:requests_total{guardrail="guard",model_name="tiny"}'] == 0  # its own are not counted
    assert not (tiny / "log.jsonl").read_text()


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
    assert ask(server, "/sae_guardrail/records?request_id=nothing")[1] == {}
    lines = [json.loads(line) for line in (tiny / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 3 * len(ROWS)
    assert {name for line in lines for name in line["guardrails"]} == {"guard", "second"}


def test_metrics_count_what_was_enabled(server):
    before = metrics(server)
    body = {"model": "tiny", "max_tokens": 1, "temperature": 0}
    for row in ROWS:
        assert (
            ask(server, "/v1/completions", {**body, "prompt": row, "vllm_xargs": {"sae_guardrail": "guard"}})[0] == 200
        )
    assert ask(server, "/v1/completions", {**body, "prompt": [1], "vllm_xargs": {"sae_guardrail": "x"}})[0] == 400
    assert ask(server, "/v1/completions", {**body, "prompt": [1, 5]})[0] == 200  # ends the requests before it
    _, records = ask(server, "/sae_guardrail/records?limit=7")
    fired = sum(by["guard"]["fired"] for by in records.values() if by["guard"]["enabled"])
    gained = {name: value - before.get(name, 0.0) for name, value in metrics(server).items()}
    labels = 'guardrail="guard",model_name="tiny"'
    assert gained[f"sae_guardrail:requests_total{{{labels}}}"] >= len(ROWS)
    assert gained['sae_guardrail:requests_total{guardrail="second",model_name="tiny"}'] <= 1
    assert 0 < gained[f'sae_guardrail:fired_total{{action="clamp",{labels}}}'] == fired
    assert gained['sae_guardrail:errors_total{model_name="tiny",reason="bad_request"}'] == 1
    assert gained['sae_guardrail:errors_total{model_name="tiny",reason="not_finite"}'] == 0
    assert gained['sae_guardrail:pass_seconds_count{model_name="tiny"}'] >= len(ROWS)
    assert gained['sae_guardrail:pass_seconds_sum{model_name="tiny"}'] > 0


def test_check_from_outside(server, tiny, capsys):
    def check(adapter):
        code = main(["check", "--url", f"http://127.0.0.1:{server}/v1", "--adapter", str(adapter)])
        return code, capsys.readouterr().out

    code, said = check(tiny / "bundle" / "guard")
    assert code == 0, said
    assert said.count("ok       forget") == said.count("ok       retain") == 2
    assert "forget 2: Clamped (statistic" in said
    assert "The guardrail fired on 2 of 2 requests on the topic" in said
    code, said = check(shutil.copytree(tiny / "bundle" / "guard", tiny / "other"))
    assert code == 1
    assert "The server has no guardrail other" in said
