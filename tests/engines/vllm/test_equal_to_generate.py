"""Tokens and records of a guarded vLLM engine are those of `generate()`, whatever the engine does with its rows."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from served import expected, prompts, save_guardrail, save_model, serving
from zoo import PARAGRAPHS


ROWS = prompts()
CHUNKS = {"max_num_batched_tokens": 64}
WHOLE = {"enable_prefix_caching": False, "enable_chunked_prefill": False}


def same(found, wanted):
    for row, ((tokens, records), (wanted_tokens, wanted_records)) in enumerate(zip(found, wanted, strict=True)):
        assert records == wanted_records, row
        assert tokens == wanted_tokens, row


def check(model, guardrails, rows=ROWS, **options):
    with serving(model, guardrails, **options) as engine:
        found, outputs = engine.answers(rows)
    wanted = expected(model, guardrails, rows)
    same(found, wanted)
    assert len({records[guardrails[0].name][0] for _, records in wanted}) == 2  # the gate divides the rows
    return outputs


def test_chunks_and_cached_prefixes(tiny):
    guard = tiny / "guard"
    with serving(tiny / "gemma3", [guard], **CHUNKS) as engine:
        first, _ = engine.answers(ROWS)
        again, outputs = engine.answers(ROWS)
    wanted = expected(tiny / "gemma3", [guard], ROWS)
    same(first, wanted)
    same(again, wanted)
    assert sum(output.num_cached_tokens for output in outputs) > 0


def test_preempted_rows(tiny):
    with serving(tiny / "gemma3", [tiny / "guard"], num_gpu_blocks_override=11, max_num_seqs=8) as engine:
        rows = prompts(8, longest=127)
        found, _ = engine.answers(rows, max_tokens=24)
        assert engine.core.scheduler.kv_cache_config.num_blocks == 11
    same(found, expected(tiny / "gemma3", [tiny / "guard"], rows, tokens=24))


def test_several_samples_of_prompts_that_are_computed_in_one_pass(tiny):
    rows = [ROWS[-1], ROWS[-1], ROWS[-2]]
    with serving(tiny / "gemma3", [tiny / "guard"]) as engine:
        _, outputs = engine.answers(rows, n=2, temperature=1, top_k=1)
    wanted = expected(tiny / "gemma3", [tiny / "guard"], rows)
    for output, (tokens, _) in zip(outputs, wanted, strict=True):
        assert [list(sample.token_ids) for sample in output.outputs] == [tokens, tokens]


def test_sequence_scope_with_whole_prompts(tiny):
    guard = save_guardrail(tiny, tiny / "gemma3", "whole", gate_scope="sequence")
    check(tiny / "gemma3", [guard], **WHOLE)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("all", {"clamp_mode": "all"}),
        ("loose", {"sticky": False}),
        ("windowed", {"statistic": "windowed", "threshold": 0.8}),
        ("turns", {"boundary_ids": list(range(40, 60))}),
        ("paragraphs", PARAGRAPHS),
        ("usual", {"outlier_norm": 30.0, "calibration": {"residual_norm_median": 1.0}}),
    ],
)
def test_kinds_of_guardrails(tiny, name, fields):
    check(tiny / "gemma3", [save_guardrail(tiny, tiny / "gemma3", name, **fields)], **CHUNKS)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_that_return_a_pair_or_a_tensor(tiny, name):
    model = save_model(tiny, name)
    check(model, [save_guardrail(tiny, model, f"{name}-guard")], **CHUNKS)


@pytest.mark.parametrize("name", ["mixtral"])
def test_mixtures_of_experts(tiny, name):
    model = save_model(tiny, name)
    check(model, [save_guardrail(tiny, model, f"{name}-guard")], **CHUNKS)


def test_layers_of_transformers_own_model(tiny):
    """In a process of its own: vLLM replaces parts of transformers, which no longer works by itself then."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(check_transformers, tiny).result()


def check_transformers(folder):
    wanted = expected(folder / "gemma3", [folder / "guard"], ROWS)
    with serving(folder / "gemma3", [folder / "guard"], model_impl="transformers", **CHUNKS) as engine:
        same(engine.answers(ROWS)[0], wanted)


def test_two_guardrails_at_one_layer_and_one_at_another(tiny):
    model = tiny / "gemma3"
    second = save_guardrail(tiny, model, "second", seed=3)
    third = save_guardrail(tiny, model, "third", layer=2, seed=4)
    check(model, [tiny / "guard", second, third], **CHUNKS)


def test_a_guardrail_that_only_records_changes_nothing(tiny):
    record = save_guardrail(tiny, tiny / "gemma3", "record", action="record")
    check(tiny / "gemma3", [record], **CHUNKS)
    with serving(tiny / "gemma3", [record]) as engine:
        found, _ = engine.answers(ROWS)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected(tiny / "gemma3", [], ROWS)]


def test_a_refusal_is_written_token_by_token(tiny):
    message = [201, 202, 203, 204, 511]
    refuse = save_guardrail(tiny, tiny / "gemma3", "refuse", action="refuse", refusal_ids=message)
    with serving(tiny / "gemma3", [refuse], **CHUNKS) as engine:
        found, _ = engine.answers(ROWS, max_tokens=5)
        again, _ = engine.answers(ROWS, max_tokens=5)
    wanted = expected(tiny / "gemma3", [refuse], ROWS, tokens=5)
    same(found, wanted)
    same(again, wanted)
    assert any(tokens == message for tokens, _ in found)


def test_bf16(tiny):
    """Rounded to 8 bits, tokens near a tie differ; where and how the gate fired does not."""
    with serving(tiny / "gemma3", [tiny / "guard"], dtype="bfloat16", **CHUNKS) as engine:
        found, _ = engine.answers(ROWS, max_tokens=1)
    wanted = expected(tiny / "gemma3", [tiny / "guard"], ROWS, tokens=1, dtype=torch.bfloat16)
    same_counts = [a[1]["guard"][3] == b[1]["guard"][3] for a, b in zip(found, wanted, strict=True)]
    assert all(same_counts)
    close = [abs(a[1]["guard"][2] - b[1]["guard"][2]) <= 3 for a, b in zip(found, wanted, strict=True)]
    assert all(close)


def test_requests_choose_their_guardrails(tiny):
    model = tiny / "gemma3"
    second = save_guardrail(tiny, model, "second", seed=3)
    with serving(model, [tiny / "guard", second], {"per_request": True}, **CHUNKS) as engine:
        for extra, on in (
            (None, [tiny / "guard", second]),
            ({"sae_guardrail": ""}, []),
            ({"sae_guardrail": "second"}, [second]),
            ({"sae_guardrail": ["guard"]}, [tiny / "guard"]),
        ):
            for _ in range(2):  # the second time from the cache, of its own set
                found, _ = engine.answers(ROWS, extra=extra)
                wanted = expected(model, on, ROWS)
                assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted], extra


def test_aborted_requests_leave_no_trace(tiny):
    from vllm import SamplingParams

    with serving(tiny / "gemma3", [tiny / "guard"], **CHUNKS) as engine:
        llm = engine.llm.llm_engine
        for number, row in enumerate(ROWS):
            llm.add_request(f"gone{number}", {"prompt_token_ids": row}, SamplingParams(max_tokens=50, detokenize=False))
        for _ in range(3):
            llm.step()
        llm.abort_request([f"gone{number}" for number in range(len(ROWS))])
        found, _ = engine.answers(ROWS)
    same(found, expected(tiny / "gemma3", [tiny / "guard"], ROWS))
