"""Tokens and records of `generate_batch` on a guarded model are those of `generate()`, whatever happens to the rows."""

import json

import pytest
import torch
from continuous import (
    INFERENCE_MODE,
    RETURNS_SAMPLES,
    SIZE,
    answers,
    asked,
    load,
    manager_of,
    matched_prefixes,
    settings,
)
from served import expected, prompts, save_guardrail, save_model, save_multimodal
from transformers import Gemma3ForConditionalGeneration
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from upstream import multimodal_models_are_batched
from zoo import PARAGRAPHS

from sae_unlearn import attach_guardrail, detach_guardrail, record_firings
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.runtime.paged_guards import PagedGuards, Request


ROWS = prompts(30)
FEW = prompts(8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    for name in ("gemma3", "llama", "hybrid"):
        save_guardrail(folder, save_model(folder, name), f"{name}-guard")
    return folder


def same(found, wanted):
    for row, ((tokens, records), (wanted_tokens, wanted_records)) in enumerate(zip(found, wanted, strict=True)):
        assert records == wanted_records, row
        assert tokens == wanted_tokens, row


def check(folder, name, guards, rows=FEW, **options):
    wanted = expected(folder / name, guards, rows)
    same(answers(load(folder / name, guards), rows, **options), wanted)
    assert len({records[guards[0].name][0] for _, records in wanted}) == 2  # the gate divides the rows


@pytest.mark.parametrize("name", ["hybrid", "gemma3", "llama", "gpt2"])
def test_thirty_prompts_in_pieces(tiny, name):
    model = save_model(tiny, name)
    check(tiny, name, [save_guardrail(tiny, model, f"{name}-guard")], ROWS)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_mixtures_of_experts(tiny, name):
    check(tiny, name, [save_guardrail(tiny, save_model(tiny, name), f"{name}-guard")])


@multimodal_models_are_batched
def test_text_of_a_multimodal_model(tiny):
    """Its text backbone gets embeddings in the place of token ids."""
    model = Gemma3ForConditionalGeneration.from_pretrained(save_multimodal(tiny)).eval()
    guard = tiny / "gemma3-guard"
    guarded = attach_guardrail(model, guard, adapter_name=guard.name)
    same(answers(guarded, FEW), expected(tiny / "gemma3", [guard], FEW))


def test_positions_of_several_axes_are_refused():
    guards = PagedGuards.__new__(PagedGuards)
    guards.requests = [Request("a", 0, 3, 3)]
    with pytest.raises(GuardrailUnsupported, match="position_ids"):
        guards.pass_of({"input_ids": torch.zeros(1, 3).long(), "position_ids": torch.zeros(3, 1, 3).long()})


def test_prefixes_that_requests_share(tiny, monkeypatch):
    matches = matched_prefixes(monkeypatch)
    model, wanted = load(tiny / "llama", [tiny / "llama-guard"]), expected(tiny / "llama", [tiny / "llama-guard"], FEW)
    for _ in range(2):
        same(answers(model, FEW, kept=True), wanted)
    assert sum(matches) > 0


@pytest.mark.skipif(not RETURNS_SAMPLES, reason="this transformers does not return samples")
@pytest.mark.parametrize("name", ["hybrid", "llama"])
def test_forked_requests(tiny, name):
    guard, rows = tiny / f"{name}-guard", FEW[2:5]
    found = answers(load(tiny / name, [guard]), rows, samples=3)
    same(found, [answer for answer in expected(tiny / name, [guard], rows) for _ in range(3)])


@pytest.mark.parametrize("scope", ["prefix", "sequence"])
def test_requests_that_are_computed_again_since_the_cache_was_full(tiny, scope, monkeypatch):
    model = save_model(tiny, "hybrid")
    guard = save_guardrail(tiny, model, f"again-{scope}", gate_scope=scope)
    again = asked(monkeypatch, "create_equivalent_initial_request")
    rows, large = prompts(8, longest=90), {"max_batch_tokens": 512, "num_blocks": 30, "allow_block_sharing": False}
    found = answers(load(model, [guard]), rows, tokens=40, **large)
    same(found, expected(model, [guard], rows, tokens=40))
    assert again


def test_canceled_requests_leave_no_trace(tiny):
    guard = tiny / "gemma3-guard"
    model = load(tiny / "gemma3", [guard])
    with manager_of(model) as manager:
        gone = [manager.add_request(row, max_new_tokens=200, streaming=True) for row in FEW]
        seen = set()
        while len(seen) < 3:
            seen.add(manager.get_result(timeout=60).request_id)
        for request in gone:
            manager.cancel_request(request)
        ids = manager.add_requests(FEW, max_new_tokens=16)
        results = {}
        while len(results) < len(FEW):
            result = manager.get_result(timeout=60)
            if result.request_id in ids and result.is_finished():
                results[result.request_id] = result.generated_tokens
    assert [results[each] for each in ids] == [tokens for tokens, _ in expected(tiny / "gemma3", [guard], FEW)]


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
    check(tiny, "gemma3", [save_guardrail(tiny, tiny / "gemma3", name, **fields)])


def test_two_guardrails_at_one_layer_and_one_at_another(tiny):
    second = save_guardrail(tiny, tiny / "gemma3", "second", seed=3)
    third = save_guardrail(tiny, tiny / "gemma3", "third", layer=2, seed=4)
    check(tiny, "gemma3", [tiny / "gemma3-guard", second, third])


def test_a_guardrail_that_only_records_changes_nothing(tiny):
    record = save_guardrail(tiny, tiny / "gemma3", "record", action="record")
    check(tiny, "gemma3", [record])
    tokens = [tokens for tokens, _ in answers(load(tiny / "gemma3", [record]), FEW)]
    assert tokens == [tokens for tokens, _ in expected(tiny / "gemma3", [], FEW)]


@pytest.mark.parametrize("name", ["hybrid", "llama", "gemma3"])
def test_a_refusal_is_written_token_by_token(tiny, name):
    message = [201, 202, 203, 204, 510]
    model = save_model(tiny, name)
    refuse = save_guardrail(tiny, model, f"{name}-refuse", action="refuse", refusal_ids=message)
    wanted = expected(model, [refuse], FEW, tokens=5)
    same(answers(load(model, [refuse]), FEW, tokens=5), wanted)
    assert any(tokens == message for tokens, _ in wanted)


WHOLE = {"max_batch_tokens": 2048, "allow_block_sharing": False}


def test_sequence_scope_with_whole_prompts(tiny):
    check(tiny, "llama", [save_guardrail(tiny, tiny / "llama", "whole", gate_scope="sequence")], **WHOLE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", WHOLE | {"max_batch_tokens": 64}),
        ("llama", WHOLE | {"allow_block_sharing": True}),
        ("hybrid", WHOLE | {"samples": 2}),
    ],
    ids=["pieces", "shared prefixes", "forks"],
)
def test_sequence_scope_is_refused_where_prompts_are_not_whole(tiny, name, options):
    guard = save_guardrail(tiny, tiny / name, f"{name}-whole", gate_scope="sequence")
    results = answers(load(tiny / name, [guard]), FEW, fails=True, **options)
    assert all("gate_scope" in error and "allow_block_sharing" in error for error in results)


def test_a_sink_gets_the_record_of_each_request_when_it_ends(tiny, tmp_path):
    model, wanted = (
        load(tiny / "gemma3", [tiny / "gemma3-guard"]),
        expected(tiny / "gemma3", [tiny / "gemma3-guard"], FEW),
    )
    with record_firings(model, to=tmp_path / "log") as firings:
        answers(model, FEW, record=False)
        assert len(firings) == 0
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(line["request"] for line in lines) == [f"req_{i}" for i in range(len(FEW))]
    by = {line["request"]: line for line in lines}
    for number, (_, records) in enumerate(wanted):
        (record,) = records.values()
        assert tuple(by[f"req_{number}"][key] for key in ("fired", "at_token", "evidence", "tokens")) == record


def test_a_record_is_there_when_its_answer_is(tiny, tmp_path, monkeypatch):
    model, answered = load(tiny / "gemma3", [tiny / "gemma3-guard"]), []

    def deliver(self, outputs, deliver=OutputRouter.deliver_batch):
        lines = (tmp_path / "log").read_text()
        answered.extend(output.request_id for output in outputs if output.is_finished())
        assert all(json.dumps(request) in lines for request in answered)
        deliver(self, outputs)

    monkeypatch.setattr(OutputRouter, "deliver_batch", deliver)
    with record_firings(model, to=tmp_path / "log"):
        answers(model, FEW, record=False)
    assert len(answered) == len(FEW)


def test_a_detached_model_answers_as_if_never_guarded(tiny):
    model = load(tiny / "gemma3", [tiny / "gemma3-guard"])
    answers(model, FEW)
    bare = detach_guardrail(model)
    assert [t for t, _ in answers(bare, FEW, record=False)] == [t for t, _ in expected(tiny / "gemma3", [], FEW)]


def test_pages_do_not_matter(tiny):
    for size in (8, 64):
        check(tiny, "gemma3", [tiny / "gemma3-guard"], **{SIZE: size, "num_blocks": 3200 // size})


@pytest.mark.skipif(not INFERENCE_MODE, reason="this transformers cannot generate in inference mode")
@torch.inference_mode()
def test_inference_mode(tiny):
    check(tiny, "gemma3", [tiny / "gemma3-guard"])


def test_the_settings_are_not_changed(tiny):
    assert settings(max_batch_tokens=64).max_batch_tokens == 64
