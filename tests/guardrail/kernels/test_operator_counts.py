"""What a guardrail may cost, counted and not timed: operators per decoded token, waits for a device, graph breaks."""

import pytest
import torch
from decoding import Decoding, added
from peft import get_peft_model
from zoo import EOS, base_model, guarded, plant, planted_config, with_cache

from benchmarks.speed.kernel_count import kernels, waits
from sae_unlearn import record_firings


# Operators that one guardrail adds to a decoding step, those that compute nothing left out.
BOUNDS = {("ratio", "dynamic"): 35, ("ratio", "static"): 50, ("windowed", "dynamic"): 51}
WEIGHED = 1  # more, where tokens are weighed
OUTLIERS = 3  # more, where outlying tokens are left out
BY_MESSAGE = {"dynamic": 55, "static": 70}
KERNELS_MASK = {False: 2, True: 8}  # more, where the mask is the attention kernel's, and additive
THRESHOLDS = {"ratio": 0.4, "windowed": 0.5}


@pytest.mark.parametrize(("statistic", "kind"), BOUNDS)
def test_a_decoding_step_takes_few_operators(statistic, kind, by_operators):
    by_operators()
    fields = {"statistic": statistic, "threshold": THRESHOLDS[statistic]}
    found = added(kernels, kind, **fields)
    assert 10 < sum(found.values()) <= BOUNDS[statistic, kind], found


def test_to_weigh_tokens_takes_a_few_more_and_waits_for_no_device(by_operators):
    by_operators()
    fields = {"threshold": 0.4, "feature_evidence": [0.25, 3.0, 1.5, 2.0, 0.75, 1.0]}
    assert sum(added(kernels, "dynamic", **fields).values()) <= BOUNDS["ratio", "dynamic"] + WEIGHED
    assert added(waits, "dynamic", **fields) == {}


def test_to_leave_out_outlying_tokens_takes_three_more_and_waits_for_no_device(by_operators):
    by_operators()
    fields = {"threshold": 0.4, "outlier_norm": 20.0}
    assert sum(added(kernels, "dynamic", **fields).values()) <= BOUNDS["ratio", "dynamic"] + OUTLIERS
    assert added(waits, "dynamic", **fields) == {}


@pytest.mark.parametrize("kind", BY_MESSAGE)
def test_to_judge_each_message_by_itself_takes_some_more_and_waits_for_no_device(kind):
    fields = {"threshold": 0.4, "boundary_ids": [EOS]}
    assert BOUNDS["ratio", kind] < sum(added(kernels, kind, **fields).values()) <= BY_MESSAGE[kind]
    assert added(waits, kind, **fields) == {}


def test_without_a_mask_nothing_is_compared_with_earlier_passes(by_operators, monkeypatch):
    by_operators()
    masked = sum(added(kernels, "dynamic", threshold=0.4).values())

    def run(decoding, ids, length):
        with torch.no_grad():
            decoding.model(input_ids=ids, **with_cache(decoding.model, decoding.cache), logits_to_keep=1)

    monkeypatch.setattr(Decoding, "run", run)
    assert sum(added(kernels, "dynamic", threshold=0.4).values()) <= masked - 5


def test_a_disabled_guardrail_adds_no_operator():
    model = guarded("llama")
    with model.disable_adapter():
        off = Decoding(model)
        assert kernels(off.step) == kernels(Decoding(base_model("llama")).step)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("statistic", THRESHOLDS)
def test_a_decoding_step_waits_for_no_device(statistic, kind, by_operators):
    by_operators()
    fields = {"statistic": statistic, "threshold": THRESHOLDS[statistic]}
    fields["special_ids"] = list(range(40))  # `torch.isin` waits where there are many
    assert added(waits, kind, **fields) == {}


@pytest.mark.slow
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_decoding_step_reads_the_attention_kernels_mask_at_little_cost(kind, additive, monkeypatch):
    def run(decoding, ids, length):
        keys = 64 if kind == "static" else length
        seen = (torch.arange(keys) <= torch.arange(length)[:, None])[None, None, -ids.shape[1] :]
        mask = torch.zeros(seen.shape).masked_fill(~seen, -1e9) if additive else seen
        with torch.no_grad():
            decoding.model(
                input_ids=ids, attention_mask=mask, **with_cache(decoding.model, decoding.cache), logits_to_keep=1
            )

    monkeypatch.setattr(Decoding, "run", run)
    assert sum(added(kernels, kind, threshold=0.4).values()) <= BOUNDS["ratio", kind] + KERNELS_MASK[additive]
    assert added(waits, kind, threshold=0.4) == {}


def test_a_prompt_waits_for_no_device():
    found = []
    for model in (guarded("llama"), base_model("llama")):
        Decoding(model)  # the first call looks whether the weights arrived
        found.append(waits(lambda model=model: Decoding(model)))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_recording_to_a_sink_adds_nothing_to_a_decoding_step(kind):
    model, given = guarded("llama"), []
    bare = Decoding(model, kind)
    bare.step()
    with record_firings(model, to=given.append):
        recorded = Decoding(model, kind)
        recorded.step()
        assert kernels(recorded.step) == kernels(bare.step)
        assert waits(recorded.step) == waits(bare.step)
        assert given == []
        del recorded
        assert len(given) == 2


def test_a_wait_would_be_seen():
    model = guarded("llama")
    layer = model.get_base_model().model.layers[2]
    handle = layer.register_forward_hook(lambda module, args, output: bool(output.isnan().any()) or None)
    assert sum(waits(Decoding(model).step).values()) > sum(waits(Decoding(guarded("llama")).step).values())
    handle.remove()


@pytest.mark.parametrize("operators", [False, True])
def test_the_operators_do_not_grow_with_what_was_read(operators, by_operators):
    if operators:
        by_operators()
    short, long = Decoding(guarded("llama"), prompt=4), Decoding(guarded("llama"), prompt=60)
    assert kernels(short.step) == kernels(long.step)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["sequence", "prefix"])
def test_decoding_with_a_static_cache_is_one_graph_for_all_steps(scope):
    """What a CUDA graph needs: nothing is compiled again from one step to the next, and no tensor moves."""
    torch._dynamo.reset()
    model = get_peft_model(base_model("llama"), planted_config(gate_scope=scope))
    plant(model)
    compiled, eager = Decoding(model, "static"), Decoding(model, "dynamic")
    compiled.model = torch.compile(model.get_base_model(), backend="aot_eager", fullgraph=True, dynamic=False)
    mask, graphs, places = torch.ones(2, 64, dtype=torch.long), [], set()
    ids = compiled.ids[:, -1:]
    for _ in range(5):
        with torch.no_grad():
            found = compiled.model(
                input_ids=ids, attention_mask=mask, **with_cache(compiled.model, compiled.cache), logits_to_keep=1
            ).logits
        eager.length += 1
        torch.testing.assert_close(found, eager.run(ids, eager.length).logits, atol=1e-5, rtol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        places.add(tuple(layer.keys.data_ptr() for layer in compiled.cache.layers))
    assert graphs[1:] == graphs[1:2] * 4
    assert len(places) == 1


def test_what_a_refusal_adds_grows_with_the_length_of_its_message_and_not_with_its_square():
    short, long = (
        sum(added(kernels, "dynamic", action="refuse", refusal_ids=[40] * n + [EOS]).values()) for n in (9, 19)
    )
    assert long - short <= 60
