"""What is changed on a guardrail that has been called already is looked at before the next call."""

import copy
import dataclasses
import pickle

import pytest
import torch
from accelerate import cpu_offload
from config_fields import PLACES, assign
from zoo import EOS, VOCAB, base_model, guarded, logits_of, token_ids

from sae_unlearn import GuardrailError, GuardrailNotReady, UnlearnError, attach_guardrail, guardrail_status
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.runtime import readiness


IDS = token_ids(6, 12)
NEVER = {
    "threshold": 5.0,
    "min_tokens": 10**6,
    "outlier_norm": 1e-6,
    "statistic": "x",
    "clamp_mode": "x",
    "action": "x",
    "gate_scope": "x",
    "sticky": "x",
    "special_ids": list(range(VOCAB)),
}
WHILE_COMPILING = [name for name in NEVER if name not in ("outlier_norm", "sticky", "special_ids")]


def assert_raises(model, match, run=None):
    status = guardrail_status(model)
    assert status.verdict == "raises", str(status)
    with pytest.raises(GuardrailNotReady, match=match):
        logits_of(model if run is None else run, IDS)


@pytest.mark.parametrize("name", NEVER)
def test_a_field_that_no_guardrail_has_stops_the_next_call(name):
    model = guarded("llama")
    logits_of(model, IDS)
    assign(model.peft_config["default"], **{name: NEVER[name]})
    assert_raises(model, name)


@pytest.mark.parametrize(("name", "wrong"), [("sum_weight", 0.0), ("counting", "x"), ("min_tokens", 0)])
def test_a_value_that_no_group_has_is_refused_where_it_is_assigned(name, wrong):
    config = guarded("llama").peft_config["default"]
    version = config.version
    for change in ({name: wrong}, {"another": wrong}):
        with pytest.raises(GuardrailError, match=next(iter(change))):
            setattr(config, PLACES[name], change)
    with pytest.raises(GuardrailError, match=f"{name}: .*{PLACES[name]}"):
        setattr(config, name, wrong)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(getattr(config, PLACES[name]), name, wrong)
    assert config.version == version


@pytest.mark.parametrize(
    "name",
    [  # a number, a choice and a choice that shapes the graph; compiling takes seconds, so that the rest is nightly
        pytest.param(
            name, marks=pytest.mark.slow if name in ("threshold", "statistic", "gate_scope") else pytest.mark.nightly
        )
        for name in WHILE_COMPILING
    ],
)
def test_and_compiled_code(name):
    torch._dynamo.reset()
    model = guarded("llama")
    compiled = torch.compile(model, backend="eager")
    logits_of(compiled, IDS)
    assign(model.peft_config["default"], **{name: NEVER[name]})
    assert_raises(model, name, compiled)


def test_a_list_that_grew_is_looked_at():
    model = guarded("llama")
    logits_of(model, IDS)
    config = model.peft_config["default"]
    assign(config, special_ids=(*config.tokens.special_ids, *range(2, 60)))
    assert_raises(model, "special_ids")


@pytest.mark.parametrize("assigned_later", [False, True])
def test_a_list_cannot_be_changed_in_its_place(assigned_later):
    evidence = [0.25, 3.0, 1.5, 2.0, 0.75, 1.0]
    model = guarded("llama", feature_evidence=evidence)
    config = model.peft_config["default"]
    if assigned_later:
        config.feature_evidence = evidence
    expected = logits_of(model, IDS)
    with pytest.raises(TypeError):
        config.feature_evidence[2] = -1.5
    evidence[2] = -1.5  # what was given is the caller's own
    assert torch.equal(logits_of(model, IDS), expected)


def test_a_list_that_is_replaced_is_looked_at():
    evidence = [0.25, 3.0, 1.5, 2.0, 0.75, 1.0]
    model = guarded("llama", feature_evidence=evidence)
    logits_of(model, IDS)
    model.peft_config["default"].feature_evidence = [0.25, 3.0, -1.5, 2.0, 0.75, 1.0]
    assert_raises(model, "feature_evidence=-1.5")


def test_a_field_that_is_deleted_is_looked_at():
    model = guarded("llama")
    logits_of(model, IDS)
    del model.peft_config["default"].threshold  # None, the default of its class
    assert_raises(model, "threshold")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_change_of_a_copy_is_looked_at(copied):
    model = guarded("llama")
    logits_of(model, IDS)
    twin = copied(model)
    twin.peft_config["default"].threshold = 5.0
    assert_raises(twin, "threshold")
    logits_of(model, IDS)


def test_another_config_in_its_place_is_looked_at():
    model = guarded("llama")
    logits_of(model, IDS)
    other = copy.copy(model.peft_config["default"])
    other.threshold = 5.0
    guard_layers(model)[0].guard_config["default"] = other
    with pytest.raises(GuardrailNotReady, match="threshold"):
        logits_of(model, IDS)


def test_a_config_is_checked_again_only_after_a_change(monkeypatch):
    checked = []
    check = readiness.check_config
    monkeypatch.setattr(readiness, "check_config", lambda *args, **kwargs: checked.append(check(*args, **kwargs)))
    model = guarded("llama")
    for _ in range(4):
        logits_of(model, IDS)
    assert len(checked) == 1
    assign(model.peft_config["default"], special_ids=[3, 1])
    for _ in range(4):
        logits_of(model, IDS)
    assert len(checked) == 2


WEIGHTS = {
    "written": lambda encoder: encoder.weight.zero_(),
    "a row": lambda encoder: encoder.weight[1].zero_(),
    "replaced": lambda encoder: setattr(encoder, "weight", torch.nn.Parameter(0 * encoder.weight, requires_grad=False)),
    "in the dict": lambda encoder: encoder._parameters.update(weight=torch.nn.Parameter(0 * encoder.weight)),
    "data": lambda encoder: setattr(encoder.weight, "data", 0 * encoder.weight),
    "removed": lambda encoder: encoder._parameters.pop("bias"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_change_are_looked_at(name):
    model = guarded("llama")
    logits_of(model, IDS)
    with torch.no_grad():
        WEIGHTS[name](guard_layers(model)[0].guardrail("default").encoder)
    with pytest.raises((GuardrailNotReady, KeyError, AttributeError)):
        logits_of(model, IDS)


def test_a_field_that_is_changed_to_a_sound_value_is_taken():
    model = guarded("llama", threshold=0.4)
    logits_of(model, IDS)
    model.peft_config["default"].threshold = 0.45
    found = logits_of(model, IDS)
    torch.testing.assert_close(found, logits_of(guarded("llama", threshold=0.45), IDS))


@pytest.mark.parametrize("name", ["threshold", "min_tokens", "special_ids"])
def test_of_offloaded_weights_the_config_is_looked_at(name):
    model = guarded("llama")
    assign(model.peft_config["default"], **{name: NEVER[name]})
    cpu_offload(model.get_base_model(), execution_device="cpu")
    assert_raises(model, name)


def spoilt(model):
    with torch.inference_mode():
        guard_layers(model)[0].guardrail("default").encoder.weight.zero_()
    return model


def test_weights_that_were_attached_in_inference_mode_cannot_be_changed_unseen(tmp_path):
    guarded("llama").save_pretrained(tmp_path)
    with torch.inference_mode():
        model = attach_guardrail(base_model("llama"), tmp_path)
        assert any(p.is_inference() for p in guard_layers(model)[0].sae_guardrail_encoder.parameters())
        found = logits_of(model, IDS)
    torch.testing.assert_close(found, logits_of(guarded("llama"), IDS))
    assert_raises(spoilt(model), "zero for features")


def test_a_message_beyond_the_vocabulary_is_told_beforehand():
    model = guarded("llama", action="refuse", refusal_ids=[2**22, EOS])
    assert_raises(model, "refusal_ids: .*4194304")


def test_what_stops_a_call_is_of_the_packages_errors():
    assert issubclass(GuardrailNotReady, UnlearnError)
    assert issubclass(GuardrailNotReady, RuntimeError)
