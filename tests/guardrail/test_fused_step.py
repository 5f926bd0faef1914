"""The fused kernels under Triton's interpreter, without a GPU: `pip install triton`, and run this file by itself."""

import os
import sys

import pytest
import torch


if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is loaded and compiles; run this file by itself", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton")

from test_speed import Decoding, kernels
from zoo import guarded, padded, planted_config, token_ids

from sae_unlearn import record_firings
from sae_unlearn.guardrail import fused_step as fused
from sae_unlearn.guardrail import fused_step_use
from sae_unlearn.guardrail.layer import GuardrailDecoder, GuardrailEncoder


CPU = torch.device("cpu")
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def steps(monkeypatch):
    """The kernels serve wherever they would on a GPU; the list grows by one at each step they do."""
    calls, step = [], fused.fused_step

    def counted(*args):
        calls.append(args)
        return step(*args)

    monkeypatch.setattr(fused_step_use, "on_gpu", lambda hidden: True)
    monkeypatch.setattr(fused, "fused_step", counted)
    fused.works(CPU, torch.float32)
    calls.clear()
    return calls


def generated(model, **how):
    batch = padded([token_ids(1, n, seed=n)[0] for n in (4, 7, 12)])
    batch["input_ids"][1, -2] = 96  # an EOS amid a prompt
    with record_firings(model) as firings, torch.no_grad():
        out = model.generate(**batch, **GREEDY | how, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits), list(firings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_give_what_the_operators_do(dtype):
    assert fused._first_difference(CPU, dtype) is None


@pytest.mark.parametrize("wrong", ["edit", "state", "error"])
def test_kernels_that_do_not_work_are_left_alone_with_a_warning(wrong, monkeypatch):
    step = fused.fused_step

    def broken(*args):
        edited, state = step(*args)
        if wrong == "error":
            raise RuntimeError("no compiler here")
        return (edited + 0.01, state) if wrong == "edit" else (edited, state + 1)

    monkeypatch.setattr(fused, "fused_step", broken)
    with pytest.warns(UserWarning, match="fused kernels do not work on cpu"):
        assert not fused.works.__wrapped__(CPU, torch.float32)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"clamp_mode": "all", "gate_scope": "prefix"},
        {"sticky": False, "threshold": 0.5},
        {"special_token_ids": None, "threshold": 0.999},
        {"num_features": 37},
        {"evidence": "log_ratio", "feature_evidence": [0.25, 3.0, 1.5, 2.0, 0.75, 1.0], "threshold": 1.0},
        {"outlier_norm": 20.0, "threshold": 0.1},
    ],
    ids=["default", "all", "not_sticky", "quiet", "features", "weighed", "outliers"],
)
def test_generation_is_that_of_the_operators(fields, steps):
    model = guarded("llama", **{"min_tokens": 8, "threshold": 0.5} | fields)
    found = generated(model)
    assert len(steps) == 5
    fused_step_use.on_gpu = lambda hidden: False  # put back by the fixture
    expected = generated(model)
    assert len(steps) == 5
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    assert found[2] == expected[2]
    assert any(firing.fired for firing in found[2]) is (fields.get("threshold") != 0.999)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_fires_as_with_the_operators(value, steps):
    model = guarded("llama", threshold=0.999)  # quiet but for that
    layer, found = model.get_base_model().model.layers[1], []
    handle = layer.register_forward_hook(
        lambda module, args, out: out.index_fill(0, torch.tensor([1]), value) if out.shape[1] == 1 else out,
        prepend=True,
    )
    for on in (True, False):
        fused_step_use.on_gpu = lambda hidden, on=on: on  # put back by the fixture
        decoding = Decoding(model)
        with record_firings(model) as firings:
            decoding.step()
        found.append((decoding.cache.layers[-1].keys[:, 0, -1], [firing.fired for firing in firings]))
    handle.remove()
    assert len(steps) == 1
    assert found[0][1] == found[1][1] == [False, True]
    torch.testing.assert_close(found[0][0], found[1][0], equal_nan=True)


def test_beams_are_those_of_the_operators(steps):
    model = guarded("llama", min_tokens=8, threshold=0.5, gate_scope="prefix")
    found = generated(model, num_beams=3, num_return_sequences=3)
    assert steps
    fused_step_use.on_gpu = lambda hidden: False
    expected = generated(model, num_beams=3, num_return_sequences=3)
    assert torch.equal(found[0], expected[0])
    assert found[2] == expected[2]


def test_a_step_is_two_kernels_and_the_caches_append(steps, monkeypatch):
    decoding, launched = Decoding(guarded("llama")), []

    class Launcher:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(self.name)

    bare = Decoding(guarded("llama"))
    bare.model.base_model.disable_adapter_layers()
    for name in ("encode_kernel", "gate_kernel"):
        monkeypatch.setattr(fused, name, Launcher(name))
    found = kernels(decoding.step)
    assert launched == ["encode_kernel", "gate_kernel"]
    bare.cache, bare.length = type(bare.cache)(config=bare.model.config), 0
    bare.run(bare.ids, 8)
    bare.length = 8
    found.subtract(kernels(bare.step))
    assert {name: n for name, n in found.items() if n} == {"aten.cat": 1}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"statistic": "window", "window": 8}, False),
        ({"statistic": "cusum", "threshold": 1.5}, False),
        ({"action": "record"}, False),
        ({"counting": "columns"}, False),
        ({}, True),
    ],
    ids=["window", "cusum", "record", "columns", "prompt"],
)
def test_what_the_kernels_do_not_compute_is_left_to_the_operators(fields, prompt, steps):
    model = guarded("llama", **fields)
    if prompt:
        model(input_ids=token_ids(2, 6))
    else:
        generated(model)
    assert steps == []


def test_training_and_lowered_weights_are_left_to_the_operators(steps):
    hidden, config = torch.zeros(2, 1, 32), planted_config()
    parts = GuardrailEncoder(32, 6), GuardrailDecoder(32, 6)
    assert fused_step_use.serves(config, hidden, *parts)
    assert not fused_step_use.serves(config, hidden.clone().requires_grad_(), *parts)
    assert not fused_step_use.serves(config, hidden, parts[0], GuardrailDecoder(32, 6).double())
    assert not fused_step_use.serves(config, hidden.expand(2, 2, 32), *parts)
