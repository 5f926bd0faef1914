"""vLLM's own server with a guardrail, over HTTP: worker in a process of its own, records, refusals, odd requests."""

import json
import shutil
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import ask, expected, prompts, save_guardrail, streamed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm_server import metrics, vllm_server

from sae_unlearn.cli.main import main


pytestmark = pytest.mark.slow
ROWS = prompts(6, longest=100)
KEY = "sae_guardrail"
BODY = {"model": "tiny", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
EDITED = BODY | {"vllm_xargs": {KEY: "guard,second"}}  # and not refused
MESSAGE = [201, 202, 203, 204, 511]
LONG = (ROWS[-1] * 2)[:150]  # more than a block of the cache
JUDGED = {  # number of records by what is asked
    "one token": ({"prompt": [5]}, 1),
    "two prompts": ({"prompt": ROWS[:2]}, 2),
    # short: vLLM 0.32 on a CPU stops at a seed whose prompt comes in pieces ("CPU Generator does not use offset")
    "samples with a seed": ({"prompt": ROWS[0], "n": 3, "seed": 7, "temperature": 1}, 3),
    "prompts and samples": ({"prompt": ROWS[:2], "n": 2, "temperature": 1}, 4),
    "text": ({"prompt": "w5 w6 w7 w8"}, 1),
    "stop strings": ({"prompt": ROWS[2], "stop": ["w7", "w9", "w1"]}, 1),
    "logprobs": ({"prompt": ROWS[2], "logprobs": 3}, 1),
    "echo with logprobs": ({"prompt": ROWS[2], "echo": True, "logprobs": 2}, 1),
    "few tokens allowed": ({"prompt": ROWS[2], "allowed_token_ids": [7, 8]}, 1),
    "beams": ({"prompt": ROWS[1], "n": 2, "use_beam_search": True, "max_tokens": 2}, 3),
    "a salt like that of a choice": ({"prompt": LONG, "cache_salt": f"|{KEY}:second"}, 1),
    "a choice": ({"prompt": LONG, "vllm_xargs": {KEY: "second"}}, 1),
    "the salt of that choice": ({"prompt": LONG, "cache_salt": json.dumps([KEY, ["second"], None])}, 1),
    "no salt": ({"prompt": LONG}, 1),
}
REFUSED = {
    "no token": {"prompt": []},
    "empty text": {"prompt": ""},
    "longer than the model's limit": {"prompt": [5] * 300},
    "a token that is none": {"prompt": [5, 512]},
    "a negative token": {"prompt": [5, -1]},
    "a number as choice": {"prompt": ROWS[0], "vllm_xargs": {KEY: 3}},
    "a list with a number": {"prompt": ROWS[0], "vllm_xargs": {KEY: ["guard", 3]}},
    "a list of lists": {"prompt": ROWS[0], "vllm_xargs": {KEY: [["guard"]]}},
    "choices that are none": {"prompt": ROWS[0], "vllm_xargs": KEY},
    "an unknown name": {"prompt": ROWS[0], "vllm_xargs": {KEY: "guard,third"}},
    "echo with logprobs, where one refuses": {"prompt": ROWS[2], "echo": True, "logprobs": 2},
    "embeddings": {"prompt_embeds": "AAAA", "prompt": None},
    "a message without a template": {"messages": [{"role": "user", "content": "w5"}]},
}


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
        recorded = {role: [float(role == "forget")] * len(rows[role]) for role in rows}
        config["calibration"] = {"probe": rows, "probe_statistics": recorded}
        config.pop("config_sha256", None)
        shutil.copytree(path, folder / path.name)
        (folder / path.name / "adapter_config.json").write_text(json.dumps(config))
    index = {"format_version": 1, "guardrails": [path.name for path in guardrails], "lora": None}
    (folder / "bundle.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def server(tiny):
    """The port of `sae-unlearn serve` with a bundle of three guardrails, among which requests may choose."""
    words = {f"w{number}": number for number in range(512)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w511").save_pretrained(tiny / "gemma3")
    second = save_guardrail(tiny, tiny / "gemma3", "second", seed=3)
    refuse = save_guardrail(tiny, tiny / "gemma3", "refuse", action="refuse", refusal_ids=MESSAGE)
    bundle = save_bundle(tiny / "bundle", [tiny / "guard", second, refuse])
    own = ["--dtype", "float32", "--per-request", "--log", tiny / "log.jsonl"]
    engine = ["--served-model-name", "tiny", "--enforce-eager", "--max-model-len", 256, "--max-num-seqs", 8]
    engine += ["--max-num-batched-tokens", 64]
    with vllm_server(tiny / "gemma3", bundle, tiny / "server.log", *own, "--", *engine) as port:
        yield port


def test_it_was_checked_before_it_took_traffic(server, tiny):
    said = (tiny / "server.log").read_text()
    checked = said.index("guardrail second: it fired on 2 of 2 stored rows on the topic and 0 of 2 stored other rows")
    assert checked < said.index("Application startup complete")
    _, found = ask(server, "/sae_guardrail/guardrails")
    assert [one["name"] for one in found["guardrails"]] == ["guard", "second", "refuse"]
    assert "as at the fit" in found["guardrails"][0]["check"]
    before = metrics(server)
    assert before['sae_guardrail:requests_total{guardrail="guard",model_name="tiny"}'] == 0  # its own are not counted
    assert not (tiny / "log.jsonl").read_text()


def test_answers_records_and_choices(server, tiny):
    both = [tiny / "guard", tiny / "second"]
    for choice, on in (("guard,second", both), ("second", both[1:]), ("", [])):
        extra = {"vllm_xargs": {KEY: choice}}
        for row, (tokens, records) in zip(ROWS, expected(tiny / "gemma3", on, ROWS, tokens=8), strict=True):
            status, answer = ask(server, "/v1/completions", {**BODY, "prompt": row, **extra})
            assert status == 200, answer
            assert answer["choices"][0]["token_ids"] == tokens
            _, found = ask(server, f"/sae_guardrail/records?request_id={answer['id']}")
            (by_guardrail,) = found.values()
            for name, (fired, at_token, evidence, count) in records.items():
                record = by_guardrail[name]
                assert (record["fired"], record["at_token"]) == (fired, at_token)
                assert (record["evidence"], record["tokens"]) == (evidence, count)
    status, answer = ask(server, "/v1/completions", {**BODY, "prompt": ROWS[0], "vllm_xargs": {KEY: "x"}})
    assert status == 400
    assert "'x'" in json.dumps(answer)
    assert ask(server, "/v1/completions", {**BODY, "prompt": ROWS[0]})[0] == 200
    assert ask(server, "/sae_guardrail/records?request_id=nothing")[1] == {}
    lines = [json.loads(line) for line in (tiny / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 3 * len(ROWS)
    assert {name for line in lines for name in line["guardrails"]} == {"guard", "second", "refuse"}


def test_a_stream_has_the_refusal_and_no_other_token(server, tiny):
    """Of prompts on which the gate fires, with the guardrail that refuses and with all; others are as without it."""
    bare, fired = expected(tiny / "gemma3", [], ROWS, tokens=8), []
    for row, (_, records), (plain, _) in zip(
        ROWS, expected(tiny / "gemma3", [tiny / "refuse"], ROWS, tokens=1), bare, strict=True
    ):
        for choice in ({"vllm_xargs": {KEY: "refuse"}}, {}):
            parts = streamed(server, "/v1/completions", {**BODY, "prompt": row, **choice})
            tokens = [token for part in parts for token in part["choices"][0]["token_ids"]]
            said = "".join(part["choices"][0]["text"] for part in parts).split()
            found = ask(server, f"/{KEY}/records?request_id={parts[0]['id']}")[1]
            (record,) = (by["refuse"] for by in found.values())
            if records["refuse"][0]:
                assert (tokens, said) == (MESSAGE, ["w201", "w202", "w203", "w204"])
                assert parts[-1]["choices"][0]["finish_reason"] == "stop"
                assert (record["fired"], record["action"]) == (True, "refuse")
                fired.append(row)
            elif choice and not record["fired"]:
                assert tokens == plain
    assert len(fired) >= 2  # of each choice
    assert len(fired) < 2 * len(ROWS)


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


# ------------------------------------------------------------------------------------------------------ odd requests


def send(port, fields):
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    return ask(port, path, {**BODY, **fields})


def lives(port):
    """The server answers, and has a record of it."""
    status, answer = send(port, {"prompt": ROWS[0]})
    return status == 200 and bool(ask(port, f"/{KEY}/records?request_id={answer['id']}")[1])


def test_they_are_judged(server):
    for name, (fields, count) in JUDGED.items():
        status, answer = send(server, {**EDITED, **fields})
        assert status == 200, (name, answer)
        _, records = ask(server, f"/{KEY}/records?request_id={answer['id']}")
        assert len(records) >= count if name == "beams" else len(records) == count, (name, records)
        assert all(by["second"]["enabled"] and by["second"]["tokens"] for by in records.values()), (name, records)
    assert lives(server)


def test_they_are_refused(server):
    for name, fields in REFUSED.items():
        status, answer = send(server, fields)
        assert 400 <= status < 500, (name, status, answer)
        assert lives(server), name


def test_fifty_clients_at_once_of_whom_some_leave(server, tiny):
    both = [tiny / "guard", tiny / "second"]
    wanted = expected(tiny / "gemma3", both, ROWS, tokens=8)

    def client(number):
        row = number % len(ROWS)
        body = {**EDITED, "prompt": ROWS[row]}
        if number % 5 == 4:  # leaves as soon as it has sent
            data = json.dumps({**body, "stream": True, "max_tokens": 100}).encode()
            with socket.create_connection(("127.0.0.1", server)) as line:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
                line.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
            return None
        status, answer = ask(server, "/v1/completions", body)
        assert status == 200, answer
        _, records = ask(server, f"/{KEY}/records?request_id={answer['id']}")
        (by_guardrail,) = records.values()
        found = {
            name: tuple(by_guardrail[name][k] for k in ("fired", "at_token", "evidence", "tokens"))
            for name in ("guard", "second")
        }
        return row, (answer["choices"][0]["token_ids"], found)

    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(client, range(50)))
    for row, found in filter(None, answers):
        assert found == wanted[row], row
    assert lives(server)


def test_a_client_cannot_pass_for_the_servers_own_check(server):
    before = metrics(server)
    request = urllib.request.Request(
        f"http://127.0.0.1:{server}/v1/completions",
        json.dumps({**BODY, "prompt": ROWS[0]}).encode(),
        {"Content-Type": "application/json", "X-Request-Id": "sae_guardrail-check-guard-0-"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    assert "sae_guardrail-check" in found["id"]
    assert lives(server)  # and ends the one before
    name = 'sae_guardrail:requests_total{guardrail="guard",model_name="tiny"}'
    assert metrics(server)[name] - before[name] >= 1


@pytest.mark.parametrize(("query", "status"), [("limit=-1", 200), ("limit=x", 400), ("request_id=%00", 200)])
def test_odd_queries_of_records(server, query, status):
    found = ask(server, f"/{KEY}/records?{query}")
    assert found[0] == status
    assert status != 200 or found[1] == {}
