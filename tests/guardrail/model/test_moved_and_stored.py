"""A guarded model that is moved, cast, copied, pickled or given other weights guards or raises."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from guarded_calls import IDS, assert_guarded, assert_raises, logits
from peft import get_peft_model
from torch.func import functional_call
from zoo import base_model, guarded, planted_config

from sae_unlearn import GuardrailNotReady, detach_guardrail, guardrail_status, record_firings
from sae_unlearn.guardrail import guard_layers


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


@pytest.mark.parametrize(("statistic", "threshold"), [("ratio", 2.0), ("ratio", 1 - 1e-12), ("windowed", float("inf"))])
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
    with pytest.raises(GuardrailNotReady, match=r"^encoder\.weight .*'default': .*\[0, 1, 2, 3, 4\]"):
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
