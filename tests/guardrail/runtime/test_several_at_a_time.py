"""Several requests, threads and guardrails on one model do not mix."""

import threading

import pytest
import torch
from forward_calls import GREEDY, firings_of, forward, part
from peft import get_peft_model
from transformers import DynamicCache, StaticCache
from upstream import dynamic_caches_are_emptied
from zoo import (
    BOS,
    EOS,
    PAD,
    LayerTap,
    base_model,
    guarded,
    padded,
    plant,
    planted_config,
    token_ids,
    with_cache,
)

from sae_unlearn import record_firings


@pytest.mark.parametrize("kind", [pytest.param("dynamic", marks=dynamic_caches_are_emptied), "static"])
def test_a_cache_that_is_reset_for_the_next_request_leaves_the_records_of_the_last(kind):
    model = guarded("llama").eval()
    requests = [token_ids(3, 10, seed=seed) for seed in range(3)]
    expected = [f for ids in requests for f in firings_of(model, lambda ids=ids: model(input_ids=ids))]
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=16)
    with record_firings(model) as firings:
        for ids in requests:
            cache.reset()
            forward(model, input_ids=ids, **with_cache(model, cache))
        before = list(firings)
    cache.reset()
    forward(model, input_ids=requests[0], **with_cache(model, cache))
    assert list(firings) == before
    assert [(f.call, f.row) for f in before] == [(call, row) for call in range(3) for row in range(3)]
    assert [(f.statistic, f.fired) for f in before] == [(f.statistic, f.fired) for f in expected]


@pytest.mark.slow
def test_eight_threads_on_one_model_do_not_mix():
    model = guarded("llama", threshold=0.5, min_tokens=8)
    jobs = [padded([token_ids(1, n + i, seed=10 * i + n)[0] for n in (3, 6)]) for i in range(8)]

    def run(batch):
        out = []
        with record_firings(model) as firings, torch.no_grad():
            out = [model.generate(**batch, **GREEDY, num_beams=1 + len(batch["input_ids"][0]) % 2) for _ in range(3)]
        return out, list(firings)

    expected = [run(batch) for batch in jobs]
    found, start = [None] * 8, threading.Barrier(8)

    def work(i):
        start.wait()
        found[i] = run(jobs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (tokens, records), (expected_tokens, expected_records) in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tokens, expected_tokens, strict=True))
        assert records == expected_records


def two_guards(layers, **fields):
    model = get_peft_model(base_model("llama"), planted_config(layer=layers[0], **fields))
    plant(model)
    model.add_adapter("second", planted_config(layer=layers[1], **fields | {"threshold": 0.2}))
    plant(model, "second", seed=1)
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    return model


def test_two_guardrails_at_one_layer_add_their_edits():
    ids, edits = token_ids(8, 12), {}
    model = two_guards((1, 1))
    for names in (["default"], ["second"], ["default", "second"]):
        model.base_model.set_adapter(names, inference_mode=True)
        with LayerTap(model) as tap:
            firings = firings_of(model, lambda: model(input_ids=ids))
        edits[tuple(names)] = tap.edits()
        assert {f.adapter for f in firings} == set(names)
    assert not torch.equal(edits["default",] != 0, edits["second",] != 0)
    torch.testing.assert_close(edits["default", "second"], edits["default",] + edits["second",], atol=1e-5, rtol=1e-5)


def test_two_guardrails_at_different_layers_each_have_their_own_gate():
    ids = token_ids(8, 12)
    model = two_guards((0, 2), gate_scope="prefix")
    out = []
    with LayerTap(model, 0) as low, LayerTap(model, 2) as high:
        both = firings_of(model, lambda: out.append(model.generate(input_ids=ids, **GREEDY)))
    content = ~torch.isin(out[0][:, :-1], torch.tensor([PAD, BOS, EOS]))
    for name, tap, threshold in (("default", low, 0.4), ("second", high, 0.2)):
        hot = part(model, name)[0](torch.cat(tap.before, dim=1)).gt(0).any(-1) & content
        own = [f for f in both if f.adapter == name]
        assert [f.evidence for f in own] == hot.sum(1).tolist()
        fired = (hot.cumsum(1) / content.cumsum(1) > threshold).cummax(1).values
        assert [f.fired for f in own] == fired[:, -1].tolist()
        assert torch.equal(tap.edits().abs().amax(-1) > 0, fired & hot)


def test_beams_keep_the_gates_of_two_guardrails():
    model = two_guards((0, 2), gate_scope="prefix", sticky=False, threshold=0.48)
    ids = token_ids(4, 4)
    out = model.generate(
        input_ids=ids,
        **GREEDY,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logits = forward(model, input_ids=out.sequences).logits[:, 3:-1]
    scores = logits.log_softmax(-1).gather(2, out.sequences[:, 4:, None])[..., 0].sum(1)
    torch.testing.assert_close(scores, out.sequences_scores, atol=1e-3, rtol=0)
