"""`transformers serve` with guardrails, over HTTP: answers and records of `generate()`, refusals at the start."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from importlib.util import find_spec

import pytest
from served import ask, expected, prompts, save_guardrail, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_serve_available

from sae_unlearn.cli.main import main
from sae_unlearn.engines.probe_check import NO_PROBE
from sae_unlearn.engines.transformers_serve import GuardedServing
from sae_unlearn.errors import GuardrailError, UnlearnError
from sae_unlearn.guardrail.runtime.firing import Firing


ROWS = prompts(6, longest=100)
serves = pytest.mark.skipif(not is_serve_available(), reason='needs `pip install "transformers[serving]"`')


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    model = save_model(folder, "gemma3")
    words = {f"w{number}": number for number in range(512)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w511").save_pretrained(model)
    save_guardrail(folder, model)
    save_guardrail(folder, model, "second", seed=3)
    return folder


def start(folder, guardrails, *options):
    """A server, its port, and the file with what it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sae_unlearn.engines.transformers_serve", folder / "gemma3"]
    for guardrail in guardrails:
        command += ["--guardrail", guardrail]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", *options]
    log = folder / f"server-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command)], env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=output, stderr=subprocess.STDOUT
        )
    return process, port, log


def wait_for(process, port, log):
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline
        try:
            if ask(port, "/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.5)


@serves
@pytest.mark.slow
@pytest.mark.parametrize("batching", [True, False], ids=["continuous batching", "generate"])
def test_answers_and_records(tiny, batching):
    both = [tiny / "guard", tiny / "second"]
    small = ["--cb-num-blocks", 64, "--cb-block-size", 16, "--cb-max-batch-tokens", 64]
    options = small if batching else ["--no-continuous-batching"]
    firings = tiny / f"firings-{batching}.jsonl"
    process, port, log = start(tiny, both, "--log", firings, *options)
    try:
        wait_for(process, port, log)
        tokenizer = AutoTokenizer.from_pretrained(tiny / "gemma3")
        bodies = [
            {"model": str(tiny / "gemma3"), "max_tokens": 8, "temperature": 0, "prompt": tokenizer.decode(row)}
            for row in ROWS
        ]
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: ask(port, "/v1/completions", body), bodies))
        wanted = expected(tiny / "gemma3", both, ROWS, tokens=8)
        for (status, answer), (tokens, records) in zip(answers, wanted, strict=True):
            assert status == 200, answer
            assert answer["choices"][0]["text"] == tokenizer.decode(tokens, skip_special_tokens=True)
            _, found = ask(port, f"/sae_guardrail/records?request_id={answer['id']}")
            if batching:
                (by_guardrail,) = found.values()
                for name, record in records.items():
                    assert tuple(by_guardrail[name][k] for k in ("fired", "at_token", "evidence", "tokens")) == record
        assert len(firings.read_text().splitlines()) == 2 * len(ROWS)
        _, served = ask(port, "/sae_guardrail/guardrails")
        assert [each["name"] for each in served["guardrails"]] == ["guard", "second"]
        assert served["model"] == str(tiny / "gemma3")
        assert all("it judges" in each["check"] for each in served["guardrails"])
        fires = [records["guard"][0] for _, records in wanted]
        for side in (True, False):
            texts = [body["prompt"] for body, fired in zip(bodies, fires, strict=True) if fired == side]
            (tiny / f"{side}.txt").write_text("\n\n".join(texts))
        if batching:  # records come with continuous batching only
            data = ["--forget", tiny / "True.txt", "--retain", tiny / "False.txt"]
            check = ["check", "--url", f"http://127.0.0.1:{port}", "--adapter", tiny / "guard", *data]
            assert main([*map(str, check)]) == 0
        if find_spec("prometheus_client"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                counted = answer.read().decode()
            requests = len(ROWS) * (2 if batching else 1)  # and those of the check
            assert f'requests_total{{guardrail="guard",model_name="{tiny / "gemma3"}"}} {requests}.0' in counted
    finally:
        process.terminate()
        process.wait(60)


@serves
@pytest.mark.slow
def test_a_guardrail_of_another_model_stops_the_start(tiny):
    other = save_guardrail(tiny, save_model(tiny, "llama"), "of-llama")
    process, port, log = start(tiny, [other])
    assert process.wait(300) == 1
    assert "transformers_serve: The guardrail was fitted on" in log.read_text()
    assert "this is another model" in log.read_text()
    assert "Traceback" not in log.read_text()
    with pytest.raises(OSError, match="refused"):
        ask(port, "/health")


@pytest.mark.parametrize(
    ("fields", "named"), [({"gate_scope": "sequence"}, "gate_scope"), ({"counting": "columns"}, "counting")]
)
def test_a_guardrail_that_cannot_judge_requests_is_refused_at_the_start(tiny, fields, named):
    guard = save_guardrail(tiny, tiny / "gemma3", f"no-{named}", **fields)
    with pytest.raises(UnlearnError, match=named):
        GuardedServing([str(guard)])
    GuardedServing([str(guard)], batching=False)


def test_damaged_folders_and_equal_names_are_refused(tiny):
    with pytest.raises(GuardrailError, match="different names"):
        GuardedServing([str(tiny / "guard"), str(tiny / "guard")])
    damaged = save_guardrail(tiny, tiny / "gemma3", "damaged")
    stored = damaged / "adapter_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(GuardrailError, match=r"/damaged.*weights_sha256"):
        GuardedServing([str(damaged)])


def test_a_record_is_found_by_the_id_of_its_answer_alone(tiny):
    serving = GuardedServing([str(tiny / "guard")])
    firing = Firing(*[0] * len(fields(Firing)))
    for request in ("req_1", "req_10", "req_1__child#0", "req_1x"):
        serving._keep(replace(firing, adapter="guard", request=request))
    assert list(serving.records("req_1")) == list(serving.records("resp_req_1")) == ["req_1", "req_1__child#0"]
    assert list(serving.records("req_10")) == ["req_10"]
    assert serving.records("req") == serving.records("q_1") == {}
    assert len(serving.records()) == 4
    assert list(serving.records(limit=1)) == ["req_1x"]


def test_guardrails_are_tested_when_they_are_attached(tiny):
    serving = GuardedServing([str(tiny / "guard")], model_name="m")
    assert serving.guardrails()["guardrails"][0]["check"] is None
    serving.attach(AutoModelForCausalLM.from_pretrained(tiny / "gemma3").eval())
    assert serving.guardrails()["guardrails"][0]["check"] == NO_PROBE
    assert serving.counts.guardrails == {"guard": {"action": "clamp", "requests": 0, "fired": 0, "not_finite": 0}}
    ((_, records),) = expected(tiny / "gemma3", [tiny / "guard"], ROWS[-1:], tokens=1)
    wrong = {"probe": {"forget": ROWS[-1:]}, "probe_statistics": {"forget": [float(not records["guard"][0])]}}
    false = save_guardrail(tiny, tiny / "gemma3", "false", calibration=wrong)
    with pytest.raises(GuardrailError, match="guardrail false"):
        GuardedServing([str(false)]).attach(AutoModelForCausalLM.from_pretrained(tiny / "gemma3").eval())
