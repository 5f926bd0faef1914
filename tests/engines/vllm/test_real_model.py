"""The demo's guardrail on the real Gemma 3 270M inside vLLM: tokens and records are those of `generate()`.

One engine carries most scenarios: requests choose among its guardrails, it computes prompts in pieces, takes prefixes
from its cache and has LoRA adapters. The cache of another is too small, one drafts, and a server has two workers.
`support/real_reference` says which guardrail it is.
"""

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
from real_reference import TOKENS
from served import ask
from vllm_server import metrics, vllm_server


pytestmark = pytest.mark.real
SHORT = 128  # tokens of a block of the cache
FIELDS = ("fired", "at_token", "evidence", "tokens")


def same(name, found, changed=True):
    """All answers and records are those of `generate()`, and the guardrail changes those on which it fires, or none."""
    print(name, json.dumps(found))
    assert found["tokens"] == found["records"] == found["prompts"] >= 30, found["differ"]
    assert (found["changed"] > found["fired"] // 2) if changed else (found["changed"] == 0)
    return found


def test_half_of_the_prompts_are_on_the_topic(reference):
    answers = json.loads((reference / "reference.json").read_text())
    assert 12 <= sum(one["record"]["fired"] for one in answers["prefix"]) <= len(answers["ids"]) - 12


# ------------------------------------------------------------------------------------- engines that are closed again


def run(reference, name):
    """Run a scenario of the benchmark, and return what happened in its passes."""
    from benchmarks.serving.equality import run
    from benchmarks.serving.scenarios import SCENARIOS

    found = run(reference, replace(SCENARIOS[name], sampling={"max_tokens": TOKENS}))
    print(json.dumps(found["passes"]))
    (one,) = found["runs"]
    same(name, one)
    return found["passes"]


def apart(reference, name):
    """Run a scenario in a process of its own: what engines before it leave behind changes which requests wait."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(run, reference, name).result()


def test_preempted_prompts(reference):
    assert apart(reference, "preempted")["resumed"] > 0


def test_drafts(reference):
    """vLLM 0.32 on a CPU also starts no other engine in a process after one that drafts."""
    assert apart(reference, "drafts")["drafts"] > 0


# ------------------------------------------------------------------------------- requests choose among its guardrails


@pytest.fixture(scope="module")
def shared(reference):
    """Answers of one engine, whose cache may be emptied before, and the counts of its passes.

    Only the longest prompts, of more than a block of the cache, can be taken from it; `SHORT` leaves 30 of 34.
    """
    from benchmarks.serving.equality import asked, started
    from benchmarks.serving.scenarios import CHUNKS, Scenario

    scenario = Scenario("prefix", "", CHUNKS | {"enable_lora": True, "max_lora_rank": 8})
    with started(reference, scenario, among=("prefix", "record", "refuse")) as (engine, passes):

        def answers(choice, lora=False, empty=False, longest=None, **sampling):
            if empty:
                assert engine.reset_prefix_cache()
            sampling = {"max_tokens": TOKENS, "extra_args": {"sae_guardrail": choice}} | sampling
            return asked(engine, reference, choice, sampling, lora, longest), passes

        yield answers


def test_pieces_of_64_tokens_and_cached_prefixes(shared):
    first, passes = shared("prefix", empty=True)
    same("pieces", first)
    print(json.dumps(passes))
    assert passes["pieces"] > 20
    again = same("cached", shared("prefix")[0])
    assert again["cached_tokens"] > first["cached_tokens"]


def test_record(shared):
    same("record", shared("record", longest=SHORT)[0], changed=False)


def test_refuse(shared):
    same("refuse", shared("refuse", longest=SHORT)[0])


def test_two_samples(shared):
    """Of prompts that are not in the cache, so that both samples of a long one share blocks of the same pass."""
    same("samples", shared("prefix", empty=True, n=2, temperature=1, top_k=1)[0])


def test_a_lora_adapter_beside_it(shared):
    same("lora", shared("prefix", lora=True, longest=SHORT)[0])


# ------------------------------------------------------------------------------------------ a server with two workers


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
        assert len(answers) >= 30
        fired = next(number for number, one in enumerate(wanted["refuse"]) if one["record"]["fired"])
        samples = answer(wanted["ids"][fired], n=2, temperature=1)
        assert len({tuple(choice["token_ids"]) for choice in samples["choices"]}) == 1  # the refusal has no chance
        assert len(ask(port, f"/sae_guardrail/records?request_id={samples['id']}")[1]) == 2
        status, said = ask(port, "/v1/completions", {**body, "prompt": wanted["ids"][0], "echo": True, "logprobs": 1})
        assert (status, "prompt_logprobs" in json.dumps(said)) == (400, True)
        counted = metrics(port)
    assert counted['sae_guardrail:requests_total{guardrail="refuse",model_name="gemma"}'] >= len(answers)
    assert counted['sae_guardrail:errors_total{model_name="gemma",reason="bad_request"}'] == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= len(answers)
