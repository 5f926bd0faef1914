"""Compiled code over a static cache stops where tokens went by without the guardrail, as other code does."""

import pytest
import torch
from cached_request import GREEDY, LENGTH, Request
from transformers.generation.configuration_utils import CompileConfig
from zoo import guarded, token_ids, with_cache

from sae_unlearn import GuardrailNotReady


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model.get_base_model(), backend="eager", fullgraph=True)


# ------------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.slow
@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_compiled_code_lets_nothing_out_either(architecture, read_first):
    model = guarded(architecture, threshold=0.99)
    request = Request(model)
    if read_first:
        request.read()
    request.unguarded()
    request.run = compiled(model)
    if architecture == "llama":
        assert request.read().isnan().all()
    else:
        with pytest.raises((GuardrailNotReady, torch._dynamo.exc.TorchDynamoException), match="GuardrailNotReady"):
            request.read()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_compiled_code_goes_on_where_everything_was_seen(architecture):
    model = guarded(architecture, threshold=0.3)
    request, dynamic = Request(model), Request(model, kind="dynamic")
    torch.testing.assert_close(request.read(), dynamic.read(), atol=1e-5, rtol=1e-5)
    request.run = compiled(model)
    for _ in range(4):
        torch.testing.assert_close(request.read(), dynamic.read(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_one_compiled_graph_finds_out_what_happens_between_its_calls():
    """The same graph, which was traced while all was well."""
    model = guarded("llama", threshold=0.99)
    request = Request(model)
    request.read()
    request.run = torch.compile(model.get_base_model(), backend="aot_eager", fullgraph=True, dynamic=False)
    mask = torch.nn.functional.pad(request.mask, (0, LENGTH - request.mask.shape[1]), value=1)
    ids = token_ids(3, 1)

    def step(run):
        with torch.no_grad():
            return run(input_ids=ids, attention_mask=mask, **with_cache(model, request.cache), logits_to_keep=1).logits

    for _ in range(3):
        assert step(request.run).isfinite().all()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with model.disable_adapter():
        step(model.get_base_model())
    assert step(request.run).isnan().all()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_compiled_generation_in_one_static_cache_turn_after_turn(architecture):
    model = guarded(architecture, threshold=0.5, min_tokens=8)
    torch._dynamo.reset()
    settings = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    found = {}
    for kind, options in (("static", {"compile_config": settings}), ("dynamic", {})):
        request = Request(model, kind=kind)
        ids, mask = request.ids, request.mask
        for _ in range(2):
            ids = model.generate(
                input_ids=ids, attention_mask=mask, **with_cache(model, request.cache), **options, **GREEDY
            )
            ids = torch.cat([ids, token_ids(3, 2)], dim=1)
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        found[kind] = ids
    assert torch.equal(found["static"], found["dynamic"])
