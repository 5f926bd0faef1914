"""Whatever befalls a guarded model: text is guarded or the call raises, and `guardrail_status` says which before."""

import copy
import io
import os
import pickle
import warnings
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.func import functional_call
from transformers import DynamicCache
from transformers.generation.configuration_utils import CompileConfig
from upstream import adapters_of_transformers
from zoo import LAYERS, base_model, guarded, padded, plant, planted_config, token_ids, with_cache

from sae_unlearn import (
    GuardrailNotReady,
    attach_guardrail,
    detach_guardrail,
    enable_guardrails,
    guardrail_status,
    record_firings,
)
from sae_unlearn.guardrail import guard_layers


IDS = token_ids(6, 12)
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def expected():
    """Logits with the guardrail, and without."""
    return logits(guarded("llama")), logits(base_model("llama"))


def assert_guarded(model, expected, atol=0.0):
    assert guardrail_status(model).verdict == "guarded", str(guardrail_status(model))
    found = logits(model)
    torch.testing.assert_close(found, expected[0], atol=atol, rtol=atol)
    assert not torch.allclose(found, expected[1], atol=1e-2)


def assert_raises(model, match):
    status = guardrail_status(model)
    assert status.verdict == "raises", str(status)
    with pytest.raises(GuardrailNotReady, match=match):
        logits(model)


# -------------------------------------------------------------------------------------- activations that are not finite


class Breaks(nn.Module):
    """A decoder layer's output with one place of the residual stream overwritten."""

    def __init__(self, model, value, row, token, feature=5):
        super().__init__()
        self.at, self.value = (row, token, feature), value
        layer = model.get_base_model().model.layers[1]
        self.handle = layer.register_forward_hook(self.overwrite, prepend=True)

    def overwrite(self, module, args, output):
        if output.shape[1] > self.at[1]:
            output = output.clone()
            output[self.at] = self.value
        return output


NOT_FINITE = [torch.nan, torch.inf, -torch.inf]
GATES = [
    {},
    {"gate_scope": "prefix"},
    {"statistic": "window", "window": 5},
    {"statistic": "cusum", "threshold": 50.0},
    {"sticky": False},
    {"clamp_mode": "all"},
]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_row_whose_activations_are_not_finite_fires_and_no_other_row_is_touched(gate, value):
    model = guarded("llama", **{"threshold": 0.99} | gate)
    with record_firings(model) as before:
        plain = logits(model)
    Breaks(model, value, row=2, token=4)
    with record_firings(model) as firings:
        found = logits(model)
    assert [f.finite for f in firings] == [row != 2 for row in range(len(IDS))]
    assert firings[2].fired
    assert firings[2].tokens == firings[2].evidence == IDS.shape[1]
    assert not found[2, 4:].isfinite().any()
    others = [row for row in range(len(IDS)) if row != 2]
    torch.testing.assert_close(found[others], plain[others])
    assert [firings[row] for row in others] == [before[row] for row in others]


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_infinity_that_every_feature_reads_alike_is_found(sign):
    """-inf is below every threshold, and +inf is above."""
    model = guarded("llama", threshold=0.99)
    guard_layers(model)[0].guardrail("default").encoder.weight.data[:, 5] = 1.0
    Breaks(model, sign * torch.inf, row=0, token=7)
    with record_firings(model) as firings:
        logits(model)
    assert firings[0].fired
    assert not firings[0].finite


def test_sampling_from_such_a_row_raises_and_a_greedy_answer_holds_nothing():
    model = guarded("llama", threshold=0.99)
    plain = model.generate(input_ids=IDS, **GREEDY)
    Breaks(model, torch.nan, row=1, token=3)
    with pytest.raises(RuntimeError, match="nan"):
        model.generate(input_ids=IDS, max_new_tokens=2, do_sample=True)
    with record_firings(model) as firings:
        found = model.generate(input_ids=IDS, **GREEDY)
    assert found[1, IDS.shape[1] :].unique().numel() == 1
    assert torch.equal(found[[0, 2, 3, 4, 5]], plain[[0, 2, 3, 4, 5]])
    assert [f.row for f in firings if not f.finite] == [1]


@pytest.mark.parametrize("counting", ["content", "columns"])
def test_what_the_mask_hides_may_be_anything(counting):
    model = guarded("llama", threshold=0.99, counting=counting)
    batch = padded([IDS[0], IDS[1][:5]])
    with torch.no_grad():
        plain = model(**batch).logits
    Breaks(model, torch.nan, row=1, token=2)  # padding: the row is 5 tokens of 12
    with record_firings(model) as firings, torch.no_grad():
        found = model(**batch).logits
    assert all(f.finite and not f.fired for f in firings)
    torch.testing.assert_close(found[0], plain[0])


def test_to_find_it_waits_for_no_device():
    """On the CPU nothing waits; what would wait elsewhere is to read a value out of a tensor."""
    model = guarded("llama", threshold=0.99)
    logits(model)  # the first call looks at the weights
    read = []
    originals = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "__bool__", "__int__", "__float__")}

    def noting(name):
        return lambda tensor, *args: read.append(name) or originals[name](tensor, *args)

    guard, seen = guard_layers(model)[0], []
    original = guard._edit

    def edit(*args):
        for name in originals:
            setattr(torch.Tensor, name, noting(name))
        try:
            seen.append(True)
            return original(*args)
        finally:
            for name, function in originals.items():
                setattr(torch.Tensor, name, function)

    guard._edit = edit
    logits(model)
    assert seen == [True]
    assert read == []


# ------------------------------------------------------------------------------------------------ moved, copied, stored


@pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.float(), lambda m: m.cpu().eval(), copy.deepcopy])
def test_moving_and_copying_keep_it(move, expected):
    assert_guarded(move(guarded("llama")), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_to_half_precision_keeps_it_and_its_own_precision(dtype):
    model = guarded("llama").to(dtype)
    assert guardrail_status(model).verdict == "guarded"
    assert {p.dtype for p in guard_layers(model)[0].parameters()} == {torch.float32}
    with record_firings(model) as firings:
        assert logits(model).isfinite().all()
    assert [f.row for f in firings] == list(range(len(IDS)))
    assert any(f.fired for f in firings)


def test_the_copy_is_guarded_when_the_original_is_let_go(expected):
    model = guarded("llama")
    copied = copy.deepcopy(model)
    base = detach_guardrail(model)
    assert_guarded(copied, expected)
    assert guardrail_status(base).verdict == "unguarded"
    assert torch.equal(logits(base), expected[1])


def test_pickled_whole_it_is_guarded(expected):
    file = io.BytesIO()
    torch.save(guarded("llama"), file)
    file.seek(0)
    assert_guarded(torch.load(file, weights_only=False), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_were_put_in_their_place_in_half_precision_stop_the_call(dtype):
    model = guarded("llama")
    half = {key: value.to(dtype) for key, value in model.state_dict().items() if "sae_guardrail" in key}
    model.load_state_dict(half, strict=False)  # copies the values into float32
    assert logits(model).isfinite().all()
    model.load_state_dict(half, strict=False, assign=True)
    assert_raises(model, "has weights below float32")


def test_a_state_dict_brings_the_weights_but_no_guardrail(expected):
    state = guarded("llama").state_dict()
    again = get_peft_model(base_model("llama"), planted_config())
    assert_raises(again, "has no weights")
    again.load_state_dict(state)
    assert_guarded(again, expected)
    bare = base_model("llama")
    with pytest.raises(RuntimeError, match="sae_guardrail"):  # a bare model has no place for them, and says so
        bare.load_state_dict({key.removeprefix("base_model.model."): value for key, value in state.items()})


@pytest.mark.parametrize(
    "lost", ["encoder.weight", "encoder.bias", "encoder.threshold", "decoder.weight", "decoder.clamp"]
)
def test_weights_that_arrive_in_part_stop_the_call(lost):
    part, key = lost.split(".")
    state = {k: v for k, v in guarded("llama").state_dict().items() if not k.endswith(f"{part}.default.{key}")}
    model = get_peft_model(base_model("llama"), planted_config())
    model.load_state_dict(state, strict=False)
    assert_raises(model, rf"has no weights \({lost}\)")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("decoder", "clamp", 3.0, "amplify"),
        ("encoder", "threshold", -1.0, "negative"),
        ("encoder", "weight", torch.nan, "no weights|not finite"),
        ("decoder", "weight", 0.0, "zero for features"),
    ],
)
def test_weights_that_are_spoilt_afterwards_stop_the_call(part, key, value, message):
    model = guarded("llama")
    logits(model)
    with torch.no_grad():
        getattr(getattr(guard_layers(model)[0], f"sae_guardrail_{part}")["default"], key).fill_(value)
    assert_raises(model, message)


def test_weights_whose_memory_is_exchanged_are_looked_at_again():
    """`parameter.data = ...` leaves the parameter and its version as they were."""
    model = guarded("llama")
    logits(model)
    for parameter in guard_layers(model)[0].parameters():
        parameter.data = torch.zeros_like(parameter)
    assert_raises(model, "zero for features")


@pytest.mark.parametrize(
    ("statistic", "threshold"), [("ratio", 2.0), ("ratio", 1.0), ("window", 1 - 1e-12), ("cusum", float("inf"))]
)
def test_a_threshold_out_of_reach_that_is_set_afterwards_stops_the_call(statistic, threshold):
    model = guarded("llama", statistic=statistic)
    logits(model)
    guard_layers(model)[0].guardrail("default").config.threshold = threshold
    assert_raises(model, f"threshold={threshold}")
    guard_layers(model)[0].guardrail("default").config.threshold = None
    assert_raises(model, "threshold=None")


def test_a_functional_call_with_other_weights_is_guarded_or_raises(expected):
    model = guarded("llama")
    logits(model)
    own = dict(model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(functional_call(model, own, (), {"input_ids": IDS}).logits, expected[0])
    none = {key: torch.zeros_like(value) if "sae_guardrail" in key else value for key, value in own.items()}
    with pytest.raises(GuardrailNotReady, match="zero for features"):
        functional_call(model, none, (), {"input_ids": IDS})


def test_pickled_for_another_process_it_is_guarded(expected):
    """As `torch.multiprocessing` sends a model, its weights in shared memory."""
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        sent = pickle.loads(bytes(ForkingPickler.dumps(guarded("llama"))))
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
    assert_guarded(sent, expected)


# --------------------------------------------------------------------------------------------------- other adapters


@adapters_of_transformers
def test_a_lora_that_transformers_adds_or_activates_leaves_it_in_force(tmp_path):
    """transformers activates it on every tuner layer of the model, a guardrail's among them."""
    model = guarded("llama")
    model.save_pretrained(tmp_path)
    base = base_model("llama")
    base.load_adapter(tmp_path, adapter_name="guard")
    for each, name in ((whole(model), "default"), (base, "guard")):
        each.add_adapter(LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), "aligned")
        for activate in (lambda: None, lambda: each.set_adapter("aligned")):  # noqa: B023
            activate()
            assert [(g.adapter, g.state) for g in guardrail_status(each).guardrails] == [(name, "guarding")]
            with record_firings(each) as firings:
                logits(each)
            assert len(firings) == len(IDS)
    base.disable_adapters()
    assert guardrail_status(base).verdict == "guarded"  # beside a LoRA the switch is the LoRA's
    with record_firings(base) as firings:
        logits(base)
    assert len(firings) == len(IDS)
    base.enable_adapters()
    enable_guardrails(base, [])
    assert guardrail_status(base).verdict == "unguarded"


# ------------------------------------------------------------------------------------------------- merged and quantised


def test_merging_raises_and_it_goes_on_guarding(expected):
    model = guarded("llama")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            merge()
    assert_guarded(model, expected)


def test_merging_a_lora_beside_it_keeps_it():
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    config = planted_config()
    from sae_unlearn.guardrail.model import SAEGuardrailModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAEGuardrailModel(lora.get_base_model(), config, "guard")
    plant(lora, "guard")
    assert guardrail_status(lora).verdict == "guarded"
    merged = lora.merge_and_unload()
    assert guardrail_status(merged).verdict == "guarded"
    with record_firings(merged) as firings:
        logits(merged)
    assert len(firings) == len(IDS)


def test_quantised_it_is_guarded():
    """Dynamic int8 replaces every linear layer of a copy; the guardrail's own weights are no linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(guarded("llama"), {nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in model.modules())
    assert guardrail_status(model).verdict == "guarded"
    with record_firings(model) as firings:
        logits(model)
    assert {f.fired for f in firings} == {True, False}


# ------------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.slow
def test_compiled_it_is_guarded(expected):
    model = torch.compile(guarded("llama"), backend="eager")
    assert_guarded(model, expected, atol=1e-5)


def compiled_whole(base):
    return torch.compile(base, backend="eager")


def compiled_in_place(base):
    base.compile(backend="eager")
    return base


def compiled_layers(base):
    for layer in base.model.layers:
        layer.compile(backend="eager")
    return base


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_layers])
def test_what_was_compiled_before_is_guarded_from_then_on(compiled, expected):
    """Compiled code does not look whether hooks have come or gone."""
    base = base_model("llama")
    run = compiled(base)
    torch.testing.assert_close(logits(run), expected[1])
    model = get_peft_model(base, planted_config())
    plant(model)
    torch.testing.assert_close(logits(run), expected[0])
    assert guardrail_status(run).verdict == "guarded"
    detach_guardrail(model)
    torch.testing.assert_close(logits(run), expected[1])


@pytest.mark.slow
def test_generation_that_transformers_compiled_before_is_guarded_from_then_on():
    """With a static cache `generate` compiles the model by itself, and keeps the code."""
    settings = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    by_code = GREEDY | {"cache_implementation": "static", "compile_config": settings}
    base = base_model("llama")
    plain = base.generate(input_ids=IDS, **by_code)
    model = get_peft_model(base, planted_config(threshold=0.3))
    plant(model)
    found = model.generate(input_ids=IDS, **by_code)
    assert torch.equal(found, guarded("llama", threshold=0.3).generate(input_ids=IDS, **GREEDY))
    assert not torch.equal(found, plain)


@pytest.mark.slow
def test_compiled_without_weights_nothing_comes_out():
    """Compiled code cannot look at weights; those that never arrived are NaN, and so is every logit."""
    model = get_peft_model(base_model("llama"), planted_config())
    assert guardrail_status(model).verdict == "raises"
    assert not logits(torch.compile(model, backend="eager")).isfinite().any()


# --------------------------------------------------------------------------------------------------- offloaded, wrapped


def whole(model):
    return model.get_base_model()


def offloaded_to_cpu(model, folder):
    cpu_offload(whole(model), execution_device="cpu")


def offloaded_to_disk(model, folder):
    disk_offload(whole(model), folder, execution_device="cpu")


def dispatched(model, folder):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(LAYERS)}
    dispatch_model(whole(model), places | layers, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("offload", [offloaded_to_cpu, offloaded_to_disk, dispatched])
def test_offloaded_it_is_guarded_or_raises(offload, expected, tmp_path):
    model = guarded("llama")
    offload(model, tmp_path)
    verdict = guardrail_status(model).verdict
    try:
        found = logits(model)
    except Exception:
        assert verdict in ("guarded", "raises")
        return
    assert verdict == "guarded"
    torch.testing.assert_close(found, expected[0])


@pytest.fixture
def process_group(tmp_path):
    os.environ |= {"MASTER_ADDR": "localhost"}
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_in_distributed_data_parallel_it_is_guarded(expected):
    model = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", r=2))  # DDP wants something to train
    from sae_unlearn.guardrail.model import SAEGuardrailModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAEGuardrailModel(model.get_base_model(), planted_config(), "guard")
    plant(model, "guard")
    assert_guarded(nn.parallel.DistributedDataParallel(model.eval()), expected)


@pytest.mark.usefixtures("process_group")
def test_in_fully_sharded_data_parallel_it_is_guarded(expected):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = guarded("llama")
    mesh = init_device_mesh("cpu", (1,))
    for layer in whole(model).model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_guarded(model, expected)


# ------------------------------------------------------------------------------------------------ taken off by the back


def hooks_cleared_on_the_layer(model):
    whole(model).model.layers[1]._forward_hooks.clear()


def hooks_cleared_everywhere(model):
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def hooks_cleared_on_the_backbone(model):
    whole(model).model._forward_pre_hooks.clear()


def layer_replaced(model):
    whole(model).model.layers[1] = base_model("llama").model.layers[1]


def layers_replaced(model):
    whole(model).model.layers = base_model("llama").model.layers


def layer_cut_off(model):
    whole(model).model.layers = whole(model).model.layers[:1]


def layers_not_run(model):
    """transformers runs as many as its config says."""
    whole(model).config.num_hidden_layers = 1


def child_removed(model):
    del whole(model).model.layers[1].guardrail
    hooks_cleared_on_the_layer(model)


TAKEN_OFF = [hooks_cleared_on_the_layer, hooks_cleared_on_the_backbone, layer_replaced, layers_replaced, layer_cut_off,
             layers_not_run, child_removed]  # fmt: skip


@pytest.mark.parametrize("take_off", TAKEN_OFF)
def test_taken_off_by_other_means_the_call_raises(take_off):
    model = guarded("llama")
    take_off(model)
    assert_raises(model, "was replaced|outside of its model")


def test_with_every_hook_of_the_model_gone_the_status_says_so():
    """Nothing is left that could stop the call; what is left of the guardrail is its weights, and they tell."""
    model = guarded("llama")
    hooks_cleared_everywhere(model)
    assert guardrail_status(model).verdict != "guarded"


def test_a_layer_that_is_wrapped_in_place_stays_guarded(expected):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model = guarded("llama")
    whole(model).model.layers[1] = Wrapper(whole(model).model.layers[1])
    assert_guarded(model, expected)


# ------------------------------------------------------------------------------------------------------- caches, status


def test_a_cache_that_it_has_not_seen_stops_the_call():
    model = guarded("llama")
    cache = DynamicCache()
    with model.disable_adapter(), torch.no_grad():
        assert guardrail_status(model).verdict == "unguarded"
        model(input_ids=IDS, **with_cache(model, cache))
    with pytest.raises(GuardrailNotReady, match="filled without the guardrail"):
        model(input_ids=IDS[:, :1], **with_cache(model, cache))
    with pytest.raises(NotImplementedError, match="cannot hold a guardrail's state"):
        model(input_ids=IDS[:, :1], **with_cache(model, ((torch.zeros(1), torch.zeros(1)),)))


@pytest.mark.parametrize(
    ("broken", "found"), [(lambda out: list(out), "a list"), (lambda out: out[0][0], r"shape \(12, 32\)")]
)
def test_a_layer_that_gives_no_residual_stream_stops_the_call(broken, found):
    model = guarded("llama")
    layer = model.get_base_model().model.layers[1]
    handle = layer.register_forward_hook(
        lambda module, args, out: broken(out if isinstance(out, tuple) else (out,)), prepend=True
    )
    with pytest.raises(NotImplementedError, match=f"LlamaDecoderLayer returns {found}"):
        model(input_ids=IDS)
    handle.remove()
    logits(model)


def test_a_cache_that_another_guardrail_of_its_name_has_seen_stops_the_call():
    """What a guardrail that is there no more made of the tokens says nothing of what this one would."""
    base, cache = base_model("llama"), DynamicCache()
    for seed in (0, 1):
        model = get_peft_model(base, planted_config())
        plant(model, seed=seed)
        if seed == 0:
            with torch.no_grad():
                model(input_ids=IDS, **with_cache(model, cache))
            detach_guardrail(model)
    with pytest.raises(GuardrailNotReady, match="has seen 0"), torch.no_grad():
        model(input_ids=IDS[:, :1], **with_cache(model, cache))


CAUSAL = torch.full((12, 12), -torch.inf).triu(1)[None, None].expand(len(IDS), 1, 12, 12)
STRANGE = {
    "from 0": torch.arange(12),
    "from 5": torch.arange(12) + 5,
    "with gaps": 2 * torch.arange(12),
    "all alike": torch.zeros(12, dtype=torch.long),
}


@pytest.mark.parametrize("positions", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("mask", [CAUSAL, CAUSAL == 0, CAUSAL[:1]], ids=["float", "bool", "one row"])
def test_positions_of_any_kind_hide_no_token_that_the_mask_shows(positions, mask):
    """A mask of one's own and positions of one's own, as for trees of drafts: the mask tells what is padding."""
    model, positions = guarded("llama"), positions[None].expand(len(IDS), -1)
    found = []
    for each in (mask, torch.ones_like(IDS)):
        with record_firings(model) as firings, torch.no_grad():
            model(input_ids=IDS, attention_mask=each, position_ids=positions)
        found.append([(f.row, f.evidence, f.tokens, f.fired) for f in firings])
    assert found[0] == found[1]
    assert {tokens for _, _, tokens, _ in found[0]} == {12}


def test_status_names_every_guardrail_and_what_it_does():
    model = guarded("llama")
    model.add_adapter("second", planted_config(layer=2, action="record"))
    plant(model, "second", seed=1)
    states = {g.adapter: (g.layer, g.state) for g in guardrail_status(model).guardrails}
    assert states == {"default": (1, "guarding"), "second": (2, "off")}
    assert guardrail_status(model).verdict == "unguarded"
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    status = guardrail_status(model)
    assert [g.state for g in status.guardrails] == ["guarding", "recording"]
    assert status.verdict == "unguarded"
    assert str(status).splitlines()[0] == "unguarded"
    model.set_adapter("default")
    model.delete_adapter("second")
    assert guardrail_status(model).verdict == "guarded"


def test_status_of_a_model_without_guardrails():
    for model in (base_model("llama"), get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"))):
        status = guardrail_status(model)
        assert status.guardrails == ()
        assert status.verdict == "unguarded"


def test_status_of_a_guardrail_that_is_in_the_config_alone():
    model = guarded("llama")
    inner = whole(model)
    inner.model = base_model("llama").model  # hooks, child and all
    (state,) = guardrail_status(model).guardrails
    assert (state.adapter, state.layer, state.state) == ("default", None, "missing")
    assert guardrail_status(model).verdict == "unguarded"


def test_status_changes_nothing(tmp_path, expected):
    model = guarded("llama")
    model.save_pretrained(tmp_path)
    again = attach_guardrail(base_model("llama"), tmp_path)
    guardrail_status(again)
    assert_guarded(again, expected)
