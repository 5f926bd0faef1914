"""More of the demo's guardrail on the real Gemma 3 270M inside vLLM: tokens and records are those of `generate()`.

Requests to one engine choose among guardrails that clamp, record and refuse; an engine with drafts and a server with
two workers are tests of their own. `support/real_reference` says which guardrail it is. The first two scenarios are in
`test_real_model`, which runs every time.
"""

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
from served import ask
from vllm_server import metrics, vllm_server


pytestmark = [pytest.mark.real, pytest.mark.nightly]
TOKENS = 8  # of each answer, as in the reference
FIELDS = ("fired", "at_token", "evidence", "tokens")


def same(found, changed=True):
    """All answers and records are those of `generate()`, and the guardrail divides the prompts."""
    print(json.dumps(found))
    assert found["tokens"] == found["records"] == found["prompts"] >= 30, found["differ"]
    assert 12 <= found["fired"] <= found["prompts"] - 12  # half of the prompts are on the topic
    assert (found["changed"] >= found["fired"] // 2) if changed else (found["changed"] == 0)


def run(reference, name):
    """Run a scenario of the benchmark, and return what happened."""
    from benchmarks.serving.equality import run
    from benchmarks.serving.scenarios import SCENARIOS

    found = run(reference, replace(SCENARIOS[name], sampling={"max_tokens": TOKENS}))
    for one in found["runs"]:
        same(one)
    return found["passes"]


@pytest.fixture(scope="module")
def shared(reference):
    """One engine, among whose guardrails requests choose: pieces of 64 tokens, prefix caching, LoRA adapters."""
    from benchmarks.serving.equality import asked, started
    from benchmarks.serving.scenarios import CHUNKS, Scenario

    scenario = Scenario("prefix", "", CHUNKS | {"enable_lora": True, "max_lora_rank": 8})
    with started(reference, scenario, among=("prefix", "record", "refuse")) as (engine, passes):

        def answers(choice, lora=False, **sampling):
            sampling = {"max_tokens": TOKENS, "extra_args": {"sae_guardrail": choice}} | sampling
            return asked(engine, reference, choice, sampling, lora), dict(passes)

        yield answers


def test_record(shared):
    same(shared("record")[0], changed=False)


def test_refuse(shared):
    same(shared("refuse")[0])


def test_two_samples(shared):
    same(shared("prefix", n=2, temperature=1, top_k=1)[0])


def test_a_lora_adapter_beside_it(shared):
    same(shared("prefix", lora=True)[0])


def test_drafts(reference):
    """In a process of its own: vLLM 0.32 on a CPU starts no other engine in a process after one that drafts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        assert process.submit(run, reference, "drafts").result(400)["drafts"] > 0


def test_a_server_with_two_workers(reference, tmp_path):
    """Requests of eight clients at once, two samples, what is refused, records and metrics."""
    from sae_unlearn.demo.model import demo_model_folder

    wanted = json.loads((reference / "reference.json").read_text())
    engine = ["--served-model-name", "gemma", "--enforce-eager", "--max-model-len", 1024, "--max-num-seqs", 16]
    engine += ["--max-num-batched-tokens", 128, "--tensor-parallel-size", 2]
    own = ["--dtype", "float32", "--log", tmp_path / "log.jsonl", "--", *engine]
    body = {"model": "gemma", "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    with vllm_server(demo_model_folder(), reference / "refuse", tmp_path / "server.log", *own) as port:

        def answer(ids, **fields):
            status, found = ask(port, "/v1/completions", {**body, "prompt": ids, **fields})
            assert status == 200, found
            return found

        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(answer, wanted["ids"]))
        for found, one in zip(answers, wanted["refuse"], strict=True):
            assert found["choices"][0]["token_ids"] == one["tokens"]
            _, records = ask(port, f"/sae_guardrail/records?request_id={found['id']}")
            (record,) = (by["refuse"] for by in records.values())
            assert [record[field] for field in FIELDS] == [one["record"][field] for field in FIELDS]
        fired = [number for number, one in enumerate(wanted["refuse"]) if one["record"]["fired"]]
        assert len(answers) >= 30
        assert len(fired) >= 12
        samples = answer(wanted["ids"][fired[0]], n=2, temperature=1)
        assert len({tuple(choice["token_ids"]) for choice in samples["choices"]}) == 1  # the refusal has no chance
        assert len(ask(port, f"/sae_guardrail/records?request_id={samples['id']}")[1]) == 2
        status, said = ask(port, "/v1/completions", {**body, "prompt": wanted["ids"][0], "echo": True, "logprobs": 1})
        assert (status, "prompt_logprobs" in json.dumps(said)) == (400, True)
        counted = metrics(port)
    assert counted['sae_guardrail:requests_total{guardrail="refuse",model_name="gemma"}'] >= len(answers)
    assert counted['sae_guardrail:errors_total{model_name="gemma",reason="bad_request"}'] == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= len(answers)
