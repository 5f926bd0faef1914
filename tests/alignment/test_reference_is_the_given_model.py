"""The reference of an alignment is the model as it was given: configs and models for which that holds, and the others,
which are refused by name."""

import dataclasses
import re
import warnings

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PeftType,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import LoraRuntimeConfig
from tiny_entities import parts, settings
from zoo import token_ids

from sae_unlearn.alignment import AlignmentError, SAEAlignmentTrainer
from sae_unlearn.alignment.adapter import adapter_on
from sae_unlearn.alignment.adapter_checks import REFUSED_TYPES
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.guardrail.config import SAEGuardrailConfig


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
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


def trainer(folder, model=None, peft_config=None, name="llama", **options) -> SAEAlignmentTrainer:
    torch.manual_seed(0)
    given = parts(name) | ({} if model is None else {"model": model})
    return SAEAlignmentTrainer(args=settings(folder, **options), **given, peft_config=peft_config)


def predictions(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=token_ids(2, 9)).logits


def assert_reference_holds(it, given) -> None:
    """Train, and see that what was frozen stays frozen and that the model without its adapter is the given one."""
    frozen = {name: p.detach().clone() for name, p in it.model.named_parameters() if not p.requires_grad}
    flags = {name: p.requires_grad for name, p in it.model.named_parameters()}
    it.train()
    it.evaluate()
    assert {name: p.requires_grad for name, p in it.model.named_parameters()} == flags
    for name, parameter in it.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
    assert not torch.equal(predictions(it.model), given)
    with adapters_off(it.model):
        assert torch.equal(predictions(it.model), given)


def put_on(model, config) -> PeftModel:
    with adapter_on(model, config, 1, [5, 6, 7, 8]) as tuned_model:
        return tuned_model


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


def lora(**fields) -> LoraConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoraConfig(**{**LORA, **fields})


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


# --- models that come with adapters --------------------------------------------------------------------------------


def tuned(*names, inference=False, **fields) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(parts()["model"], lora(inference_mode=inference, **fields), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora(**fields))
    return model


def merged():
    model = tuned("default")
    model.merge_adapter()
    return model


def disabled():
    model = tuned("default")
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def several():
    model = tuned("one", "two")
    model.base_model.set_adapter(["one", "two"])
    return model


def with_another_that_rewrites():
    model = tuned("default")
    model.add_adapter("other", lora(init_lora_weights="pissa"))
    return model


def unfrozen():
    model = tuned("default")
    model.get_base_model().model.norm.weight.requires_grad_(True)
    return model


def of_transformers():
    return inject_adapter_in_model(lora(), parts()["model"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (merged, "not merged.*unmerge_adapter"),
        (disabled, "got a disabled one"),
        (several, "one active adapter, got 'one', 'two'"),
        (with_another_that_rewrites, r"peft_config\['other'\]\.init_lora_weights='pissa'"),
        (lambda: tuned("default", bias="all"), r"peft_config\['default'\]\.bias"),
        (unfrozen, r"1 trainable parameters of it, such as model\.norm\.weight"),
        (of_transformers, "without adapters"),
        (lambda: get_peft_model(tuned("default"), lora(target_modules=["k_proj"])), "two of them"),
        (lambda: tuned("default", inference=True), "with trainable weights"),
        (
            lambda: get_peft_model(parts()["model"], PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
            "PROMPT_TUNING",
        ),
    ],
)
def test_a_model_that_is_not_the_given_one_without_its_adapter_is_refused(make, message):
    with pytest.raises(AlignmentError, match=message):
        put_on(make(), None)


def test_adapters_beside_the_trained_one_stay_as_they_are(tmp_path):
    given = predictions(parts()["model"])
    model = tuned("chat", "forget")
    model.set_adapter("forget")
    assert_reference_holds(trainer(tmp_path, model, max_steps=2), given)
    assert model.active_adapters == ["forget"]


def test_what_the_user_froze_of_the_adapter_stays_frozen(tmp_path):
    given = predictions(parts()["model"])
    model = tuned("default")
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    it = trainer(tmp_path, model, max_steps=2)
    assert_reference_holds(it, given)
    it.portrait()
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)


def test_what_is_unfrozen_after_the_start_is_noticed_at_the_first_step(tmp_path):
    it = trainer(tmp_path)
    it.model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(AlignmentError, match=r"model\.norm\.weight"):
        it.train()


def test_a_trained_copy_of_the_head_is_compared_with_the_base_s_own(tmp_path):
    it = trainer(tmp_path, peft_config=lora(modules_to_save=["lm_head"]), max_steps=3)
    it.train()
    batch = it.data_collator([it.train_dataset[i] for i in range(4)])
    base = parts()["model"].eval()
    rows = {"input_ids": batch["retain_ids"], "attention_mask": batch["retain_mask"]}
    with torch.no_grad():
        found = it._kl(it.model.eval(), batch)
        before, after = (m(**rows).logits.log_softmax(-1)[batch["retain_at"]] for m in (base, it.model))
    torch.testing.assert_close(found, (before.exp() * (before - after)).sum(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("config", [lora(modules_to_save=["lm_head"]), IA3Config(task_type="CAUSAL_LM")])
def test_a_refusal_takes_every_kind_of_adapter_off_again(tmp_path, config):
    model = parts()["model"]
    names, given, use_cache = list(model.state_dict()), predictions(model), model.config.use_cache
    with pytest.raises(AlignmentError, match="min_separation"):
        trainer(tmp_path, model, config, min_separation=1.0, num_known_latents=1, num_unknown_latents=0)
    assert list(model.state_dict()) == names
    assert torch.equal(predictions(model), given)
    assert model.config.use_cache == use_cache
