"""Models that come with adapters: the reference of an alignment is the model as it was given, or they are refused."""

import pytest
import torch
from frozen_reference import assert_reference_holds, lora, predictions, put_on, trainer
from peft import IA3Config, PeftModel, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from tiny_entities import parts

from sae_unlearn.alignment import AlignmentError


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
        (disabled, "^model: .*disabled"),
        (several, "^model: .*got 'one', 'two'"),
        (with_another_that_rewrites, r"peft_config\['other'\]\.init_lora_weights='pissa'"),
        (lambda: tuned("default", bias="all"), r"peft_config\['default'\]\.bias"),
        (unfrozen, r"^model: .*got 1 .*model\.norm\.weight"),
        (of_transformers, "without adapters"),
        (lambda: get_peft_model(tuned("default"), lora(target_modules=["k_proj"])), "two of them"),
        (lambda: tuned("default", inference=True), "^model: .*is_trainable=True"),
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
