"""The reference of an alignment is the model as it was given: configs and models for which that holds, and the others,
which are refused by name."""

import dataclasses
import re

import pytest
import torch
from frozen_reference import assert_reference_holds, lora, predictions, put_on, trainer
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import LoraRuntimeConfig
from tiny_entities import parts

from sae_unlearn.alignment import AlignmentError
from sae_unlearn.alignment.adapter_checks import REFUSED_TYPES
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.guardrail.config import SAEGuardrailConfig


INITS_SERVED = {True, False, "gaussian", "orthogonal", "mica"}
INITS_REFUSED = {"eva", "olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "lora_ga"}
# Every field of LoraConfig, with a value that is not its default: those that are served ...
SERVED = {
    "alpha_pattern": {"q_proj": 3},
    "base_model_name_or_path": "tiny",
    "ensure_weight_tying": True,
    "exclude_modules": ["q_proj"],
    "fan_in_fan_out": True,
    "init_lora_weights": "gaussian",
    "layers_to_transform": [0],
    "lora_alpha": 3,
    "lora_bias": True,
    "lora_dropout": 0.5,
    "modules_to_save": ["lm_head"],
    "qalora_group_size": 8,
    "r": 3,
    "rank_pattern": {"q_proj": 2},
    "revision": "main",
    "target_modules": "all-linear",
    "target_parameters": ["mlp.down_proj.weight"],
    "trainable_token_indices": list(range(2, 90)),
    "use_dora": True,
    "use_qalora": True,
    "use_rslora": True,
}
# ... those that are refused by name ...
REFUSED = {
    "alora_invocation_tokens": [5],
    "arrow_config": {},
    "bias": "all",
    "inference_mode": True,
    "kasa_config": {},
    "layer_replication": [(0, 2), (1, 4)],
    "monteclora_config": {},
}
# ... and those that do nothing by themselves, or are PEFT's own.
WITHOUT_EFFECT = {
    "auto_mapping",
    "corda_config",  # these five count with their init_lora_weights alone
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "layers_pattern",  # counts with layers_to_transform
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "runtime_config",
    "task_type",
    "use_bdlora",  # the shape of the LoRA's matrices
    "velora_config",  # how its gradient is stored
}


def assert_only_the_adapter_can_move(config) -> None:
    """Whatever training makes of the trainable parameters, the model without its adapter is the given one."""
    torch.manual_seed(0)
    model = parts()["model"]
    given = predictions(model)
    tuned_model = put_on(model, config)
    with torch.no_grad():
        for parameter in tuned_model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter))
    assert not torch.equal(predictions(tuned_model), given)
    with adapters_off(tuned_model):
        assert torch.equal(predictions(tuned_model), given)


# --- every initialization, every field, every method of the installed PEFT ----------------------------------------


def test_every_initialization_of_lora_is_in_the_table():
    named = set(re.findall(r"['\"]([^'\"]+)['\"]", str(LoraConfig.__dataclass_fields__["init_lora_weights"].type)))
    assert {"gaussian", "pissa_niter_[number of iters]"} <= named <= INITS_SERVED | INITS_REFUSED


def test_every_field_of_lora_is_in_the_table():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields <= {*SERVED, *REFUSED, *WITHOUT_EFFECT}, "say what a new field does to the base"
    assert not {*SERVED} & {*REFUSED}


@pytest.mark.parametrize("init", sorted(INITS_SERVED, key=str))
def test_initializations_that_leave_the_base_alone_are_served(init):
    if init == "mica" and "mica" not in str(LoraConfig.__dataclass_fields__["init_lora_weights"].type):
        pytest.skip("this PEFT has no such initialization")
    assert_only_the_adapter_can_move(lora(init_lora_weights=init))


@pytest.mark.parametrize("init", ["eva", "olora", "PiSSA", "pissa", "pissa_niter_4", "corda", "loftq", "lora_ga"])
def test_initializations_that_rewrite_the_base_are_refused_before_they_do(init):
    model = parts()["model"]
    given = predictions(model)
    config = lora()
    config.init_lora_weights = init
    with pytest.raises(AlignmentError, match=rf"peft_config\.init_lora_weights='{init}'"):
        put_on(model, config)
    assert torch.equal(predictions(model), given)


@pytest.mark.parametrize("field", sorted(SERVED))
def test_fields_of_lora_are_served(field):
    if field not in LoraConfig.__dataclass_fields__:
        pytest.skip("this PEFT has no such field")
    assert_only_the_adapter_can_move(lora(**{field: SERVED[field]}))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"init_lora_weights": "orthogonal", "use_dora": True},
        {"modules_to_save": ["lm_head"], "trainable_token_indices": [5, 6], "lora_bias": True},
        {"modules_to_save": ["embed_tokens", "layers.1.mlp"], "target_parameters": ["mlp.down_proj.weight"]},
    ],
)
def test_training_moves_the_adapter_alone(tmp_path, fields):
    given = predictions(parts()["model"])
    assert_reference_holds(trainer(tmp_path, peft_config=lora(**fields), max_steps=2), given)


@pytest.mark.parametrize(("field", "value"), [*REFUSED.items(), ("bias", "lora_only")])
def test_fields_of_lora_that_change_what_the_base_is_are_refused_by_name(field, value):
    config = lora()
    if not hasattr(config, field):
        pytest.skip("this PEFT has no such field")
    setattr(config, field, value or LoraRuntimeConfig())  # any config that is there
    with pytest.raises(AlignmentError, match=rf"peft_config\.{field}"):
        put_on(parts()["model"], config)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "qwen2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_the_base_are_not_trained(name, bias):
    target = {"gpt_neox": "query_key_value", "gpt2": "c_attn", "qwen2": "q_proj"}[name]
    with pytest.raises(AlignmentError, match=r"peft_config\.bias"):
        put_on(parts(name)["model"], lora(target_modules=[target], bias=bias))


SMALL = {
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 8},
    "WAVEFT": {"n_frequency": 8},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": list(range(2, 90))},
    "VBLORA": {"vector_length": 8},
}


@pytest.mark.parametrize("kind", sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_method_of_peft_leaves_the_reference_alone_or_is_refused_by_name(kind):
    make = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    if kind == "SAE_GUARDRAIL":
        config = SAEGuardrailConfig(layer=1, feature_ids=[0, 1])
    elif kind == "ADALORA":
        config = make(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM")
    else:
        fields = {"target_modules": ["q_proj", "v_proj"], **SMALL.get(kind, {})}
        names = {field.name for field in dataclasses.fields(make)}
        config = make(task_type="CAUSAL_LM", **{k: v for k, v in fields.items() if k in names})
    if config.is_prompt_learning or kind in REFUSED_TYPES:
        with pytest.raises(AlignmentError, match=kind):
            put_on(parts()["model"], config)
    else:
        assert_only_the_adapter_can_move(config)


def test_a_method_that_changes_the_base_and_is_not_known_to_do_so_is_noticed(monkeypatch):
    def rewriting(model, config, **kwargs):
        with torch.no_grad():
            model.model.layers[3].mlp.down_proj.weight.mul_(1.5)  # above the aligned layer, where the KL alone reads
        return get_peft_model(model, config, **kwargs)

    monkeypatch.setattr("sae_unlearn.alignment.adapter.get_peft_model", rewriting)
    with pytest.raises(AlignmentError, match=r"^peft_config: .*LoraConfig.*use_rslora"):
        put_on(parts()["model"], lora(use_rslora=True))
