"""Static caches count on the device: tokens that went by without the guardrail are found there too, without a wait."""

import pytest
import torch
from cached_request import GREEDY, ROWS, Request
from zoo import base_model, guarded, plant, planted_config, token_ids, with_cache

from benchmarks.speed.kernel_count import waits
from sae_unlearn import GuardrailNotReady, attach_guardrail, detach_guardrail, record_firings


FULL, SLIDING = ["llama", "gpt2"], ["gemma3", "mistral"]  # by the layer that tells a cache's length


# -------------------------------------------------------------------------------------------- what was seen is the same


@pytest.mark.parametrize("scope", ["sequence", "prefix"])
@pytest.mark.parametrize("architecture", FULL + SLIDING)
def test_static_caches_give_what_dynamic_ones_give(architecture, scope):
    model = guarded(architecture, gate_scope=scope, threshold=0.3)
    static, dynamic = Request(model), Request(model, kind="dynamic")
    plain = Request(base_model(architecture))
    for tokens in (3, 4, None, None, None):
        expected = dynamic.read(tokens)
        torch.testing.assert_close(static.read(tokens), expected, atol=1e-5, rtol=1e-5)
        last = plain.read(tokens)
    assert not torch.allclose(expected, last, atol=1e-2)


@pytest.mark.parametrize("architecture", FULL + SLIDING)
def test_several_turns_in_one_static_cache_are_those_of_a_dynamic_one(architecture):
    model, ids = guarded(architecture, threshold=0.3), {}
    for kind in ("static", "dynamic"):
        request = Request(model, kind=kind)
        ids[kind], mask = request.ids, request.mask
        for turn in range(3):
            more = token_ids(len(ROWS), 3, seed=turn)
            ids[kind], mask = torch.cat([ids[kind], more], dim=1), torch.cat([mask, torch.ones_like(more)], dim=1)
            settings = with_cache(model, request.cache) | {"disable_compile": True}
            ids[kind] = model.generate(input_ids=ids[kind], attention_mask=mask, **settings, **GREEDY)
            mask = torch.nn.functional.pad(mask, (0, ids[kind].shape[1] - mask.shape[1]), value=1)
    assert torch.equal(ids["static"], ids["dynamic"])


def test_a_cache_that_is_reset_begins_anew():
    for architecture in ("llama", "gemma3"):
        model = guarded(architecture)
        request = Request(model)
        expected = request.read()
        request.unguarded()
        request.cache.reset()
        request.done, request.ids, request.mask = 0, request.ids[:, :9], request.mask[:, :9]
        torch.testing.assert_close(request.read(), expected)


# ----------------------------------------------------------------------------------------------------- tokens went by


@pytest.mark.parametrize("architecture", FULL + SLIDING)
def test_a_prompt_read_without_it_stops_the_first_guarded_step(architecture):
    request = Request(guarded(architecture))
    request.unguarded()
    with pytest.raises(GuardrailNotReady, match=r"cache .* 9 .*'default' \(layer 1\).* 0:"):
        request.read()


@pytest.mark.parametrize("architecture", FULL)
def test_after_a_step_without_it_nothing_more_comes_out(architecture):
    request = Request(guarded(architecture, threshold=0.99))
    for _ in range(2):
        assert request.read().isfinite().all()
    request.unguarded()
    for _ in range(2):
        assert request.read().isnan().all()


@pytest.mark.parametrize("architecture", SLIDING)
def test_where_the_host_counts_the_next_step_raises(architecture):
    request = Request(guarded(architecture))
    for _ in range(3):
        request.read()
    request.unguarded()
    with pytest.raises(GuardrailNotReady, match=r"cache .* 12 .*'default' \(layer 1\).* 11:"):
        request.read()


@pytest.mark.parametrize("architecture", FULL + SLIDING)
def test_a_pass_of_several_tokens_raises(architecture):
    request = Request(guarded(architecture))
    request.read(3)
    request.unguarded(3)
    with pytest.raises(GuardrailNotReady, match=r"cache .* 6 .*'default' \(layer 1\).* 3:"):
        request.read(3)


@pytest.mark.parametrize(("statistic", "threshold"), [("ratio", 0.99), ("windowed", 50.0)])
def test_every_statistic_is_stopped(statistic, threshold):
    request = Request(guarded("llama", statistic=statistic, threshold=threshold))
    request.read()
    request.unguarded()
    assert request.read().isnan().all()


def test_tokens_that_went_by_while_it_was_detached(tmp_path):
    model = guarded("llama")
    model.save_pretrained(tmp_path)
    request = Request(model)
    request.read()
    request.run = detach_guardrail(model)
    request.read()
    request.run = attach_guardrail(request.run, tmp_path)
    # a guardrail that is attached again has seen nothing
    with pytest.raises(GuardrailNotReady, match=r"cache .* 10 .*'default' \(layer 1\).* 0:"):
        request.read()


def test_a_second_guardrail_that_joins_late_is_found_out_alone():
    model = guarded("llama", threshold=0.99)
    request = Request(model)
    request.read()
    model.add_adapter("late", planted_config(layer=2, threshold=0.99))
    plant(model, "late")
    model.base_model.set_adapter(["default", "late"], inference_mode=True)
    with pytest.raises(GuardrailNotReady, match=r"cache .* 9 .*'late' \(layer 2\).* 0:"):
        request.read()


def test_generating_from_such_a_cache_raises_or_gives_nothing():
    model = guarded("llama", threshold=0.99)

    def turn(tokens, sample):
        """Read a prompt, answer it without the guardrail, and answer with it after `tokens` more."""
        request = Request(model)
        request.read()
        settings = with_cache(model, request.cache) | {"disable_compile": True}
        ids = torch.cat([request.ids, token_ids(3, 1)], dim=1)
        with model.disable_adapter():
            ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings, **GREEDY)
        ids = torch.cat([ids, token_ids(3, tokens - 1)], dim=1)
        settings |= GREEDY | {"do_sample": sample}
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[:, -5:]

    with pytest.raises(GuardrailNotReady, match=r"cache .* 14 .*'default' \(layer 1\).* 9:"):
        turn(2, sample=False)
    with pytest.raises(RuntimeError, match="nan"):
        turn(1, sample=True)
    assert turn(1, sample=False).unique().numel() == 1


def test_the_answer_of_a_refusing_guardrail_is_its_message():
    never = {"statistic": "windowed", "threshold": 50.0}
    request = Request(guarded("llama", action="refuse", refusal_ids=[7, 8, 96], **never))
    assert request.read().argmax(-1).ne(7).all()
    request.unguarded()
    assert request.read().argmax(-1).eq(7).all()


def test_a_guardrail_that_only_records_says_that_it_cannot_judge():
    model = guarded("llama", threshold=0.99, action="record")
    request = Request(model)
    with record_firings(model) as firings:
        request.read()
        assert all(firing.finite for firing in firings)
        request.unguarded()
        assert request.read().isfinite().all()
        assert [(firing.finite, firing.fired) for firing in firings] == [(False, True)] * 3


# ---------------------------------------------------------------------------------------------------------- no waits


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FULL + SLIDING)
def test_a_step_over_a_static_cache_waits_for_no_device(architecture):
    found = []
    for model in (guarded(architecture), base_model(architecture)):
        request = Request(model)
        request.read(), request.read()
        found.append(waits(request.read))
    assert found[0] == found[1]


def test_finding_it_out_waits_for_no_device_either():
    request, plain = Request(guarded("llama")), Request(base_model("llama"))
    request.read(), plain.read(), plain.read()
    request.unguarded()
    assert waits(request.read) == waits(plain.read)
