"""The base model's weights under a guardrail: frozen, thawed with the last one, and never saved with it."""

import copy
import pickle
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_folders import query_lora
from transformers import Trainer, TrainingArguments
from zoo import base_model, guarded, random_sae, token_ids

from sae_unlearn import GuardrailError, SAEGuardrailConfig, attach_guardrail, detach_guardrail
from sae_unlearn.evaluation.audit.attacks.relearning import _student
from sae_unlearn.guardrail.runtime.hooks import ModelHooks, hooks_of


IDS = token_ids(8, 12)


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def train(model, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def second_on(model):
    config = SAEGuardrailConfig(layer=1, feature_ids=[1, 2], threshold=0.4, clamp_value=-1.0)
    return attach_guardrail(model, config, adapter_name="second", sae=random_sae(16))


def by_peft(folder):
    return PeftModel.from_pretrained(base_model("llama"), folder)


def by_us(folder):
    return attach_guardrail(base_model("llama"), folder)


def fresh(folder):
    return guarded("llama")


# --------------------------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("make", [by_peft, by_us, fresh])
def test_nothing_is_trainable_under_a_guardrail_alone(make, folder, capsys):
    model = make(folder)
    assert trainable(model) == []
    assert model.get_nb_trainable_parameters()[0] == 0
    model.print_trainable_parameters()
    assert "trainable params: 0 ||" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="does not require grad"):
        model.train()(input_ids=IDS, labels=IDS).loss.backward()


def test_the_base_is_thawed_with_the_last_guardrail_and_what_was_frozen_stays_frozen(folder):
    base = base_model("llama")
    base.get_input_embeddings().requires_grad_(False)
    before = trainable(base)
    assert before
    model = attach_guardrail(base, folder)
    model = second_on(model)
    assert trainable(model) == []
    detach_guardrail(model, "second")
    assert trainable(model) == []
    assert detach_guardrail(model) is base
    assert trainable(base) == before
    assert trainable(attach_guardrail(base, folder).unload()) == before


def test_an_attach_that_fails_leaves_the_base_trainable(folder, monkeypatch):
    base = base_model("llama")
    before = trainable(base)

    def fail(*args):
        raise GuardrailError("no")

    monkeypatch.setattr("sae_unlearn.guardrail.attach._write", fail)
    with pytest.raises(GuardrailError, match="no"):
        attach_guardrail(base, folder)
    assert trainable(base) == before


def test_what_is_thawed_by_hand_stays_trainable_under_a_second_guardrail(folder):
    model = attach_guardrail(base_model("llama"), folder)
    model.get_base_model().get_output_embeddings().requires_grad_(True)
    chosen = trainable(model)
    assert chosen
    second_on(model)
    assert trainable(model) == chosen


@pytest.mark.parametrize("fields", [{}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_what_a_lora_trains_is_left_to_it(folder, fields):
    lora = get_peft_model(base_model("gpt2" if "bias" in fields else "llama"), lora_of(fields))
    before = trainable(lora)
    assert before
    if "bias" in fields:
        guarded("gpt2").save_pretrained(folder / "gpt2")
    model = attach_guardrail(lora, folder / "gpt2" if "bias" in fields else folder)
    assert trainable(model) == before
    detach_guardrail(model)
    assert trainable(lora) == before


def lora_of(fields):
    config = query_lora(**fields)
    if "bias" in fields:
        config.target_modules = {"c_attn"}
    return config


def test_the_audit_trains_all_weights_of_its_student(folder):
    student = _student(attach_guardrail(base_model("llama"), folder), None)
    names = [n for n, _ in student.named_parameters() if "sae_guardrail" not in n]
    assert trainable(student) == names


# ------------------------------------------------------------------------------------- saved without the base


@pytest.mark.parametrize("make", [by_peft, by_us, fresh])
def test_saving_a_guardrail_of_a_trained_base_warns(make, folder, tmp_path):
    model = make(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "untouched", save_embedding_layers=False)
    for parameter in model.get_base_model().get_input_embeddings().parameters():
        parameter.requires_grad_(True)
    with pytest.warns(UserWarning, match="trainable"):
        model.save_pretrained(tmp_path / "trainable")
    train(model.train())
    model.requires_grad_(False)
    with pytest.warns(UserWarning, match="changed"):
        model.save_pretrained(tmp_path / "trained")


def test_a_trainer_trains_no_base_unless_it_is_thawed_and_then_saving_warns(folder, tmp_path):
    model = by_us(folder)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    settings = TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_steps=9)
    with pytest.raises(RuntimeError, match="does not require grad"):
        Trainer(model, settings, train_dataset=rows).train()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    model.get_base_model().model.layers[0].requires_grad_()
    trainer = Trainer(model, settings, train_dataset=rows)
    trainer.train()
    with pytest.warns(UserWarning, match="trainable"):
        trainer.save_model(tmp_path / "saved")


def every_weight(model):
    return [name for name, parameter in model.named_parameters() if "guardrail" not in name]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_step_of_an_optimizer_on_any_one_weight_is_found(name, optimizer):
    model, steps = guarded(name).train(), 0
    base = model.get_base_model()
    state = hooks_of(base, ModelHooks).base
    for chosen in every_weight(base_model(name)):
        weight = base.get_parameter(chosen)
        before = weight.detach().clone()
        weight.requires_grad_(True)
        step = getattr(torch.optim, optimizer)([weight], lr=1e-3)
        model(input_ids=IDS[:1, :4], labels=IDS[:1, :4]).loss.backward()
        step.step()
        weight.requires_grad_(False)
        assert (state.changed(model) is not None) == (not torch.equal(weight, before)), chosen
        steps += not torch.equal(weight, before)
        weight.data.copy_(before)
    assert steps > len(every_weight(base_model(name))) / 2
    assert state.changed(model) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_changed_value_of_any_weight_is_found_also_by_its_data(dtype, tmp_path):
    model = attach_guardrail(*written(base_model("llama").to(dtype), tmp_path))
    state = hooks_of(model.get_base_model(), ModelHooks).base
    for index, name in enumerate(every_weight(base_model("llama"))):
        weight = model.get_base_model().get_parameter(name)
        flat, before = weight.data.view(-1), weight.data.clone()
        place = (7 * index) % len(flat)
        flat[place] = torch.nextafter(flat[place], torch.tensor(9.0, dtype=dtype))
        assert "have changed" in state.changed(model)
        weight.data.copy_(before)
        assert state.changed(model) is None


def written(base, tmp_path):
    guarded("llama").save_pretrained(tmp_path / "guard")
    return base, tmp_path / "guard"


@pytest.mark.parametrize("change", ["copy", "pickle", "cast", "tokens", "grad"])
def test_what_is_no_training_does_not_warn(change, folder, tmp_path):
    model = by_us(folder)
    if change == "copy":
        model = copy.deepcopy(model)
    elif change == "pickle":
        model = pickle.loads(pickle.dumps(model))
    elif change == "cast":
        model.get_base_model().model.layers.to(torch.bfloat16)
    elif change == "tokens":
        model.get_base_model().resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    else:
        model.requires_grad_(True), model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path, save_embedding_layers=False)
