"""The step of a decoded token on a CPU, held to what torch's operators do."""

import copy
import math
from unittest.mock import patch

import pytest
import torch
from decoding import Decoding, added
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import FIELDS, generated, two_guardrails
from zoo import LayerTap, guarded, planted_config, token_ids, with_cache

from benchmarks.speed.kernel_count import kernels, waits
from sae_unlearn import record_firings
from sae_unlearn.backbone.call_arguments import cache_of
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import STATE_SIZE, decide, heard, hits_of, hot_tokens
from sae_unlearn.guardrail.kernels import cpu_step as host
from sae_unlearn.guardrail.kernels.selfcheck import first_difference
from sae_unlearn.guardrail.runtime.gate_history import MOST_LATER, DynamicGateHistory
from sae_unlearn.guardrail.weights import GuardrailDecoder, GuardrailEncoder


CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_gives_what_the_equations_do(dtype):
    assert first_difference(host.host_step, CPU, dtype) is None


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_generation_is_that_of_the_operators(fields, steps, by_operators):
    model = guarded("llama", **{"min_tokens": 8, "threshold": 0.5} | fields)
    found = generated(model)
    assert len(steps) == 5
    by_operators()
    expected = generated(model)
    assert len(steps) == 5
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    assert found[2] == expected[2]
    assert any(firing.fired for firing in found[2]) is (fields.get("threshold") != 0.999)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_guardrails_at_a_layer_add_their_edits_as_with_the_operators(dtype, steps, by_operators):
    model = two_guardrails().to(dtype)
    found = generated(model)
    assert len(steps) == 2 * 5
    by_operators()
    expected = generated(model)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-5)
    assert found[2] == expected[2]
    assert len({(firing.adapter, firing.fired) for firing in found[2]}) > 2


def test_beams_are_those_of_the_operators(steps, by_operators):
    model = guarded("llama", min_tokens=8, threshold=0.5, gate_scope="prefix")
    found = generated(model, num_beams=3, num_return_sequences=3)
    assert steps
    by_operators()
    expected = generated(model, num_beams=3, num_return_sequences=3)
    assert torch.equal(found[0], expected[0])
    assert found[2] == expected[2]


NUMBERS = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.25, 1.5, 3.0, math.inf, math.nan])
ROW = st.tuples(
    st.lists(NUMBERS, min_size=4, max_size=4),  # pre-activations, thresholds of 0.5
    st.integers(0, 9),  # hits so far, in quarters
    st.integers(0, 9),  # tokens so far
    st.booleans(),  # fired before
    st.integers(0, 3),  # token id: 1 is special
    st.booleans(),  # kept by the mask
)


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=4),
    fresh=st.booleans(),
    tau=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.7, 0.99]),
    min_tokens=st.integers(1, 8),
    sticky=st.booleans(),
    clamp_mode=st.sampled_from(["fired", "all"]),
    weighed=st.sampled_from(["", "log_ratio", "windowed"]),
    limit=st.sampled_from([None, 4.0]),
    many=st.booleans(),
)
def test_whatever_the_numbers_are_gate_and_edit_are_those_of_the_operators(
    rows, fresh, tau, min_tokens, sticky, clamp_mode, weighed, limit, many
):
    windowed = weighed == "windowed"
    evidence = [0.25, -3.0 if windowed else 3.0, 1.5, 2.0] if weighed else None
    number, fields = 4, {}
    if windowed:  # the fourth feature is the gate's alone
        number, sticky, fields = 3, True, {"statistic": "windowed", "gate_feature_ids": [900]}
    config = planted_config(
        num_features=number,
        hidden_size=4,
        **fields,
        threshold=tau,
        min_tokens=min_tokens,
        sticky=sticky,
        clamp_mode=clamp_mode,
        feature_evidence=evidence,
        outlier_norm=limit,
        special_ids=[1],
    )
    weights = None if evidence is None else torch.tensor(evidence)
    encoder, decoder = GuardrailEncoder(4, 4), GuardrailDecoder(4, number)
    encoder.weight.data, encoder.bias.data, encoder.threshold.data = torch.eye(4), torch.zeros(4), torch.full((4,), 0.5)
    decoder.weight.data, decoder.clamp.data = torch.eye(4)[:number], torch.tensor([-1.0, -0.5, 0.0, -2.0])[:number]
    hidden = torch.tensor([[row[0]] for row in rows])
    previous = torch.zeros(len(rows), STATE_SIZE)
    for state, (_, hits, tokens, fired, _, _) in zip(previous, rows, strict=True):
        state[0], state[1], state[4] = hits / 4, tokens, tokens * fired
    ids, mask = torch.tensor([[row[4]] for row in rows]), torch.tensor([[int(row[5])] for row in rows])
    history = DynamicGateHistory((0, "default"))
    if fresh:
        previous = None
    else:
        history.append(previous[:, None])

    with patch.object(host, "LARGEST", 0 if many and windowed else host.LARGEST):  # 0: the scores are of operators
        edited = host.host_step(hidden, hidden, encoder, decoder, config, ConfigTables(), ids, mask, None, history)

    counted = (mask != 0) & (ids != 1)
    pre = torch.nn.functional.linear(hidden, encoder.weight, encoder.bias)  # a product spreads what is not finite
    usual = None if limit is None else torch.linalg.vector_norm(hidden, dim=-1) <= limit
    activations = heard(pre * (pre > 0.5), counted, usual)
    active = activations != 0
    hits = hits_of(activations, active, weights, counted, config)
    decision = decide(hits, counted, config, previous, kept=mask != 0)
    hot = hot_tokens(active, hits, config)
    activations, active = activations[..., :number], active[..., :number]
    where = decision.fire[..., None] & (active if clamp_mode == "fired" else hot[..., None].expand_as(active))
    torch.testing.assert_close(history.last(), decision.state[:, -1], equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(edited, hidden + decoder(activations, where), equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_fires(value, steps):
    model = guarded("llama", threshold=0.999)  # quiet but for that
    layer = model.get_base_model().model.layers[1]
    handle = layer.register_forward_hook(
        lambda module, args, out: out.index_fill(0, torch.tensor([1]), value) if out.shape[1] == 1 else out,
        prepend=True,
    )
    decoding = Decoding(model)
    with record_firings(model) as firings:
        decoding.step()
    handle.remove()
    assert len(steps) == 1
    assert [firing.fired for firing in firings] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("fires", [True, False])
@pytest.mark.parametrize("weighed", [False, True])
def test_a_step_takes_two_operators_and_one_where_nothing_fires(fires, weighed, steps):
    fields = {"feature_evidence": [0.25, 3.0, 1.5, 2.0, 0.75, 1.0]} if weighed else {}
    threshold = 0.4 if fires else 8.4 if weighed else 0.999
    found = added(kernels, "dynamic", threshold=threshold, **fields)
    assert steps
    assert found == {"aten.addmm": 1 + fires}
    assert added(waits, "dynamic", threshold=threshold, **fields) == {}


@pytest.mark.parametrize("fires", [True, False])
def test_a_gate_that_reads_many_features_takes_five_operators_more(fires, steps, monkeypatch):
    monkeypatch.setattr(host, "LARGEST", 12)  # of two rows with six guarded features and three of the gate
    fields = {"statistic": "windowed", "threshold": 0.5 if fires else 50.0}
    found = added(kernels, "dynamic", **fields)
    assert steps
    assert found.pop("aten.addmm") == 1 + fires
    assert found.pop("aten.addmv") == 1
    assert sum(found.values()) == 4, found
    assert added(waits, "dynamic", **fields) == {}


def test_where_no_row_fires_the_stream_is_the_very_same():
    model = guarded("llama", threshold=0.999)
    decoding = Decoding(model)
    with LayerTap(model) as tap:
        decoding.step()
    assert torch.equal(tap.edits(), torch.zeros(2, 1, 32))


def test_a_mask_in_bfloat16_is_read():
    model = guarded("llama", threshold=0.4)
    outputs = []
    for dtype in (torch.long, torch.bfloat16):
        first = model(input_ids=token_ids(2, 6), use_cache=True)
        mask = torch.ones(2, 7, dtype=dtype)
        outputs.append(
            model(input_ids=token_ids(2, 1), attention_mask=mask, **with_cache(model, cache_of(first))).logits
        )
    assert torch.equal(*outputs)


@pytest.mark.parametrize("seen", [True, False])
def test_a_mask_of_the_attention_kernel_says_of_one_token_whether_it_is_padding(seen, steps):
    model = guarded("llama", threshold=0.4)
    first = model(input_ids=token_ids(2, 6), use_cache=True)
    cache = cache_of(first)
    mask = torch.full((2, 1, 1, 7), seen)
    with torch.no_grad():
        model(input_ids=token_ids(2, 1), attention_mask=mask, **with_cache(model, cache))
    history = cache.layers[-1].keys[:, 0, :, 1]
    assert (history[:, -1] - history[:, -2]).tolist() == [float(seen)] * 2
    assert steps == []


def test_defaults_of_dtype_and_device_do_not_matter(steps):
    model = guarded("llama", min_tokens=8, threshold=0.5)
    expected = generated(model)
    assert steps
    decoding = Decoding(model)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            ids = decoding.ids[:, -1:]
            with torch.no_grad():
                for _ in range(3):
                    model(input_ids=ids, **with_cache(model, decoding.cache))
            keys = decoding.cache.layers[-1].keys
    finally:
        torch.set_default_dtype(torch.float32)
    assert (keys.dtype, keys.device, keys.shape[2]) == (torch.float32, CPU, 11)
    assert torch.equal(generated(model)[0], expected[0])


@pytest.mark.parametrize("change", ["crop", "select", "repeat", "reorder", "deepcopy", "reset"])
def test_a_cache_is_handled_between_steps_as_with_the_operators(change, by_operators):
    """Whatever transformers does to a cache finds the states that lie on the host."""

    def run():
        decoding = Decoding(guarded("llama", min_tokens=8, threshold=0.5))
        decoding.step(), decoding.step()
        cache = decoding.cache
        if change == "crop":
            cache.crop(-1)
        elif change == "select":
            cache.batch_select_indices(torch.tensor([1, 1, 0]))
        elif change == "repeat":
            cache.batch_repeat_interleave(2)
        elif change == "reorder":
            cache.reorder_cache(torch.tensor([1, 0]))
        elif change == "deepcopy":
            cache = copy.deepcopy(cache)
        else:
            cache.reset()
        ids = token_ids({"select": 3, "repeat": 4}.get(change, 2), 1, seed=3)
        with torch.no_grad():
            for _ in range(2):
                logits = decoding.model(input_ids=ids, **with_cache(decoding.model, cache)).logits
        return cache.layers[-1].keys, cache.layers[-1].values.shape, logits

    found = run()
    by_operators()
    expected = run()
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-5)


def test_few_states_lie_on_the_host_at_a_time():
    model = guarded("llama", special_ids=None)
    decoding, most = Decoding(model), 0
    for _ in range(MOST_LATER + 10):
        decoding.step()
        history = decoding.cache.layers[-1]
        most = max(most, len(history._later))
        assert history.get_seq_length() == decoding.length
    assert most == MOST_LATER
    assert history.keys[0, 0, :, 1].tolist() == list(range(1, decoding.length + 1))
