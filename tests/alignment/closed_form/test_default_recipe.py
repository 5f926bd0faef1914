"""The default settings solve for the LoRA and take no step, on the Trainer's surface; `init="zero"` trains one."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from hub_requests import OWNER
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from tiny_entities import HELD_OUT, QUESTIONS, TEMPLATES, parts
from tiny_trainer import lora_weights
from zoo import token_ids

from sae_unlearn import AlignmentError, SAEAlignmentConfig, SAEAlignmentTrainer
from sae_unlearn.options.train import TrainOptions


SIZES = {
    "templates": TEMPLATES,
    "held_out_templates": HELD_OUT,
    "questions": QUESTIONS,
    "max_generic_frequency": 1.0,
    "short_prompts": [],
    "min_separation": 0.0,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "retain_budget": 0.1,
}
"""What a tiny model needs; the recipe is not among it."""
TRAINING = {"init": "zero", "retain_budget": None, "max_steps": 2}


def trainer(folder, given=None, **options):
    """A trainer on the tiny parts, with other arguments of it in `given`, and options of its settings."""
    torch.manual_seed(0)
    args = SAEAlignmentConfig(str(folder), **{**SIZES, **options})
    return SAEAlignmentTrainer(args=args, **{**parts(), **(given or {})})


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(3, 9)).logits


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A trainer that has solved, and what it measured before and after."""
    it = trainer(tmp_path_factory.mktemp("solved"), hub_model_id="forget-thing")
    before = it.evaluate()
    it.train()
    return it, before, it.evaluate()


def test_nothing_but_a_solve_is_the_default(solved):
    it, before, after = solved
    assert it.args.init == TrainOptions().init == "closed_form"
    assert it.solution is not None
    assert it.state.global_step == 0
    assert after["eval_way_left"] < 0.9 * before["eval_way_left"]
    assert after["eval_kl"] > before["eval_kl"]
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in lora_weights(it)} == {"down_proj"}
    ranks = {weight.shape[0] for name, weight in lora_weights(it).items() if "lora_A" in name}
    assert ranks == {16}
    assert any("solve_lam" in log for log in it.state.log_history)
    assert not list(Path(it.args.output_dir).glob("checkpoint-*"))


def test_the_lora_is_the_same_without_an_sae(solved, tmp_path):
    it = trainer(tmp_path, {"sae": None}, layer=solved[0].setting.layer)
    it.train()
    assert it.latents is None
    assert all(torch.equal(weight, lora_weights(solved[0])[name]) for name, weight in lora_weights(it).items())


def test_the_solution_is_saved_with_its_card_and_loads_with_peft_alone(solved, tmp_path):
    it = solved[0]
    it.save_model(str(tmp_path))
    again = PeftModel.from_pretrained(parts()["model"], str(tmp_path))
    assert torch.equal(logits(again), logits(it.model))
    assert not torch.equal(logits(again), logits(parts()["model"]))
    card = ModelCard.load(tmp_path / "README.md").text
    assert "Solved for in closed form" in card
    assert "0 optimizer steps" in card


def test_the_solution_is_pushed_and_loads_from_the_hub(solved, stand_in):
    it = solved[0]
    it.hub_model_id = None
    commit = it.push_to_hub(token=OWNER)
    found = PeftModel.from_pretrained(parts()["model"], "me/forget-thing", revision=commit.oid)
    assert torch.equal(logits(found), logits(it.model))


def test_a_trained_lora_is_asked_for_by_name(tmp_path):
    it = trainer(tmp_path, **TRAINING)
    untouched = lora_weights(it)
    it.train()
    assert it.solution is None
    assert it.state.global_step == 2
    moved = {name for name, weight in lora_weights(it).items() if not torch.equal(weight, untouched[name])}
    assert {"q_proj", "down_proj"} <= {name.rpartition(".lora_")[0].rpartition(".")[2] for name in moved}
    assert {weight.shape[0] for name, weight in untouched.items() if "lora_A" in name} == {8}
    it.save_model(str(tmp_path / "saved"))
    assert "Loss: 1 x paired" in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.parametrize(
    "asked",
    [
        {"num_train_epochs": 1},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 5},
        {"save_strategy": "epoch"},
        {"save_steps": 10},
        {"load_best_model_at_end": True},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_happens_between_steps_is_refused_without_steps(tmp_path, asked):
    name = next(iter(asked))
    with pytest.raises(AlignmentError, match=rf'^{name}=.*max_steps.*init="zero"'):
        SAEAlignmentConfig(str(tmp_path), **asked)
    if name != "load_best_model_at_end":  # which transformers has conditions of its own for
        SAEAlignmentConfig(str(tmp_path), max_steps=3, **asked)
        SAEAlignmentConfig(str(tmp_path), init="zero", **asked)


@pytest.mark.parametrize("asked", [{"num_train_epochs": 3}, {"num_train_epochs": 0}, {"save_strategy": "no"}, {}])
def test_what_asks_for_nothing_is_taken(tmp_path, asked):
    args = SAEAlignmentConfig(str(tmp_path), **asked)
    assert (args.num_train_epochs, args.max_steps) == (0, -1)
    assert dataclasses.replace(args, seed=3).solves_only
    with pytest.raises(AlignmentError, match=r"^num_train_epochs=0:"):
        dataclasses.replace(args, init="zero")
    assert dataclasses.replace(args, init="zero", num_train_epochs=2).num_train_epochs == 2


def test_settings_of_a_step_are_warned_of_without_steps(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sae_unlearn"):
        SAEAlignmentConfig(str(tmp_path), max_steps=2, learning_rate=1e-3)
        SAEAlignmentConfig(str(tmp_path), init="zero", learning_rate=1e-3)
        SAEAlignmentConfig(str(tmp_path), kl_weight=0.5, away_weight=0.1)  # which `evaluate` follows
        assert not caplog.messages
        SAEAlignmentConfig(str(tmp_path), learning_rate=1e-3, warmup_steps=10)
    (said,) = caplog.messages
    assert "learning_rate=0.001" in said
    assert "warmup_steps=10" in said
    assert "weight_decay" not in said
    assert "max_steps" in said


def test_a_checkpoint_is_not_resumed_without_steps(tmp_path):
    it = trainer(tmp_path)
    with pytest.raises(AlignmentError, match=r"^resume_from_checkpoint=True: .*max_steps"):
        it.train(resume_from_checkpoint=True)
    assert it.solution is None


def test_a_lora_elsewhere_and_sharding_are_refused_with_the_recipe_that_takes_them(tmp_path):
    elsewhere = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(AlignmentError, match=r'down_proj.*init="zero"'):
        trainer(tmp_path, {"peft_config": elsewhere}).train()
    it = trainer(tmp_path)
    it.is_fsdp_enabled = True
    with pytest.raises(AlignmentError, match=r'FSDP.*init="zero"'):
        it.train()
