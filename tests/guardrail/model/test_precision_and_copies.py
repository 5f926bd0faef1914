"""Lower precision, copies, compiled code and changed special tokens leave the gate's decisions as they are."""

import copy

import pytest
import torch
from config_fields import assign
from forward_calls import GREEDY, firings_of, forward, part
from transformers.generation.configuration_utils import CompileConfig
from zoo import BOS, EOS, PAD, LayerTap, base_model, guarded, padded, token_ids

from sae_unlearn import record_firings
from sae_unlearn.guardrail import guard_layers


@pytest.mark.parametrize(
    "lower",
    [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(dtype=torch.float16)],
    ids=["to_bfloat16", "bfloat16", "half", "to_float16"],
)
def test_lowering_the_models_precision_leaves_the_guards_weights(lower):
    model = guarded("llama")
    before = [p.clone() for m in part(model) for p in m.parameters()]
    lower(model)
    after = [p for m in part(model) for p in m.parameters()]
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(after, before, strict=True))
    assert model.get_base_model().model.layers[0].mlp.up_proj.weight.dtype.itemsize == 2
    out = []
    with LayerTap(model) as tap:
        firings = firings_of(model, lambda: out.append(model.generate(input_ids=token_ids(6, 8), **GREEDY)))
    assert any(f.fired for f in firings)
    content = ~torch.isin(out[0][:, :-1], torch.tensor([PAD, BOS, EOS]))
    hot = part(model)[0](torch.cat(tap.before, dim=1)).gt(0).any(-1) & content
    assert [f.evidence for f in firings] == hot.sum(1).tolist()
    assert tap.after[0].dtype.itemsize == 2


def test_autocast_leaves_the_gates_decisions_in_full_precision():
    model = guarded("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), LayerTap(model) as tap:
        firings = firings_of(model, lambda: model(input_ids=token_ids(32, 20)))
    encoder = part(model)[0]
    residual = tap.before[0].float()
    expected = (residual @ encoder.weight.T + encoder.bias > encoder.threshold).any(-1)
    lowered = (residual.bfloat16() @ encoder.weight.T.bfloat16() > encoder.threshold.bfloat16()).any(-1)
    assert not torch.equal(lowered, expected)
    assert [f.evidence for f in firings] == expected.sum(1).tolist()


def saved_and_loaded(model, path):
    torch.save(model, path / "model.pt")
    return torch.load(path / "model.pt", weights_only=False)


@pytest.mark.parametrize(
    "copy_of", [lambda m, path: copy.deepcopy(m), saved_and_loaded], ids=["deepcopy", "torch_save"]
)
def test_copies_keep_guarding_with_their_own_state(copy_of, tmp_path):
    model, ids = guarded("llama"), token_ids(8, 10)
    expected = forward(model, input_ids=ids).logits
    twin = copy_of(model, tmp_path)
    assert torch.equal(forward(twin, input_ids=ids).logits, expected)
    assert torch.equal(twin.generate(input_ids=ids, **GREEDY), model.generate(input_ids=ids, **GREEDY))
    with record_firings(model) as firings:
        forward(twin, input_ids=ids)
    assert len(firings) == 0
    assert len(firings_of(twin, lambda: twin(input_ids=ids))) == 8
    part(twin)[1].clamp.data.fill_(-100.0)
    assert not torch.equal(forward(twin, input_ids=ids).logits, expected)
    assert torch.equal(forward(model, input_ids=ids).logits, expected)
    plain = forward(base_model("llama"), input_ids=ids).logits
    assert torch.equal(forward(twin.unload(), input_ids=ids).logits, plain)
    assert torch.equal(forward(model, input_ids=ids).logits, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(
    ("scope", "statistic"),
    [
        ("sequence", "ratio"),
        ("prefix", "ratio"),
        ("prefix", "windowed"),
    ],
)
def test_compiled_in_one_graph_the_forward_pass_is_the_same(scope, statistic):
    model = guarded("llama", gate_scope=scope, statistic=statistic)
    batch = padded([token_ids(1, n, seed=n)[0] for n in (5, 9, 12)])
    expected = forward(model, **batch).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.get_base_model(), fullgraph=True, backend="eager")
    torch.testing.assert_close(forward(compiled, **batch).logits, expected)
    torch.testing.assert_close(forward(model, **batch).logits, expected)
    assert not torch.allclose(forward(base_model("llama"), **batch).logits, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("architecture", "scope"), [("llama", "sequence"), ("gemma3", "prefix")])
def test_compiled_static_cache_generation_is_the_same(architecture, scope):
    model = guarded(architecture, gate_scope=scope, threshold=0.5, min_tokens=8)
    batch = padded([token_ids(1, n, seed=n)[0] for n in (5, 9, 12)])
    expected = model.generate(**batch, **GREEDY)
    torch._dynamo.reset()
    settings = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = model.generate(**batch, **GREEDY, cache_implementation="static", compile_config=settings)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert torch.equal(found, expected)
    assert not torch.equal(found, base_model(architecture).generate(**batch, **GREEDY))
    assert torch.equal(model.generate(**batch, **GREEDY), expected)


def test_other_special_tokens_count_from_the_next_call_on():
    model = guarded("llama")
    ids = token_ids(1, 12)
    with record_firings(model) as firings:
        forward(model, input_ids=ids)
        assign(model.peft_config["default"], special_ids=sorted(set(ids[0, :6].tolist())))
        forward(model, input_ids=ids)
    special = int(torch.isin(ids, ids[0, :6]).sum())
    assert [firing.tokens for firing in firings] == [12, 12 - special]


def test_special_ids_beyond_every_vocabulary_take_no_memory():
    for beyond in ([2**31 - 1], [PAD, 2**31 - 1]):
        model = guarded("llama", special_ids=beyond)
        forward(model, input_ids=token_ids(1, 5))
        assert all(len(table) <= 3 for layer in guard_layers(model) for table in layer.tables.made.values())
