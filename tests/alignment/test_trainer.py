"""The trainer, on a tiny model: what a user of `Trainer` expects."""

import logging
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_entities import entities, parts, settings
from tiny_trainer import largest_difference, lora_weights, trainer
from transformers import EarlyStoppingCallback

from sae_unlearn.alignment import EntitySet, SAEAlignmentTrainer
from sae_unlearn.alignment.callbacks import RetainBudgetCallback


def test_training_brings_targets_to_the_unknown_and_every_part_is_logged(tmp_path):
    it = trainer(tmp_path, max_steps=40, logging_steps=10)
    before = it.evaluate()
    it.train()
    after = it.evaluate()
    assert after["eval_known_auc"] < before["eval_known_auc"]
    assert after["eval_toward"] < before["eval_toward"]
    assert after["eval_variance_ratio"] > 0.5
    assert max(before["eval_mse"], before["eval_kl"]) < 1e-10  # not quite 0: batches of other shapes round otherwise
    assert after["eval_kl"] > 1e-6
    logs = [log for log in it.state.log_history if "loss" in log]
    assert len(logs) == 4
    assert all({"toward", "away", "mse", "kl", "grad_norm"} <= log.keys() for log in logs)
    for log in logs:  # the logged loss is the weighted sum of its logged parts
        assert log["loss"] == pytest.approx(log["toward"] + 0.5 * log["away"] + 0.5 * log["mse"] + log["kl"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("toward", "away"), [("centroid", "repel"), ("cosine", "none"), ("mmd", "triplet")])
def test_every_kind_of_loss_trains(tmp_path, toward, away):
    it = trainer(tmp_path, toward=toward, away=away, max_steps=20, logging_steps=5)
    it.train()
    logs = [log["toward"] for log in it.state.log_history if "toward" in log]
    assert logs[-1] < 0.9 * logs[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3", "opt", "gpt_neox", "falcon_h1"])
def test_other_architectures_train(tmp_path, name):
    hybrid = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if name == "falcon_h1" else None
    it = trainer(tmp_path, name, max_steps=2, min_separation=0.0, peft_config=hybrid)
    untouched = lora_weights(it)
    it.train()
    assert largest_difference(untouched, lora_weights(it)) > 0


@pytest.mark.slow
def test_without_an_sae_the_same_loss_is_taken_on_hidden_states(tmp_path):
    it = trainer(tmp_path, sae=None, layer=1, max_steps=10)
    assert it.latents is None
    assert it.setting.codes.shape[1] == 32
    before = it.evaluate()["eval_toward"]
    it.train()
    assert it.evaluate()["eval_toward"] < before


@pytest.mark.slow
def test_accumulation_gives_what_one_large_batch_gives(tmp_path):
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        it = trainer(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
        )
        it.train()
        weights.append((lora_weights(it), [log["loss"] for log in it.state.log_history if "loss" in log]))
    assert largest_difference(weights[0][0], weights[1][0]) < 1e-6
    assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "cut", **options).train()
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert largest_difference(lora_weights(whole), lora_weights(resumed)) == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    weights = []
    for seed in (1, 1, 2):
        it = trainer(tmp_path, seed=seed)
        it.train()
        weights.append(lora_weights(it))
    assert largest_difference(weights[0], weights[1]) == 0 < largest_difference(weights[0], weights[2])


@pytest.mark.slow
def test_bfloat16_autocast_trains(tmp_path):
    it = trainer(tmp_path, bf16=True, max_steps=20)
    before = it.evaluate()["eval_toward"]
    it.train()
    assert it.evaluate()["eval_toward"] < before
    assert all(math.isfinite(log["loss"]) for log in it.state.log_history if "loss" in log)


@pytest.mark.slow
def test_types_are_compared_without_case(tmp_path):
    def spelt(given, kinds):
        return EntitySet([e.to_dict() | {"entity_type": kinds[i % len(kinds)]} for i, e in enumerate(given)])

    given = parts()
    it = trainer(
        tmp_path,
        train_dataset=spelt(given["train_dataset"], ["thing", "Thing"]),
        known=spelt(given["known"], ["Thing"]),
        unknown=spelt(given["unknown"], ["THING", "thing"]),
        max_steps=1,
    )
    it.train()
    assert it.setting.plan.groups.types == ["thing"]
    assert it.separation == trainer(tmp_path).separation


def test_however_many_are_held_out_two_of_each_kind_are_left(tmp_path):
    it = trainer(tmp_path, held_out_fraction=0.99, min_separation=0.0, max_steps=1)
    assert (len(it.setting.plan.fit_known), len(it.setting.plan.fit_unknown)) == (2, 2)
    it.train()
    assert it.state.log_history[0]["loss"] < 1e4


def test_unknown_latents_alone_train(tmp_path):
    it = trainer(tmp_path, num_known_latents=0, min_separation=0.0, max_steps=1)
    it.train()
    assert math.isfinite(it.state.log_history[0]["loss"])
    assert it.state.log_history[0]["away"] == 0


def test_callbacks_of_the_user_are_heard(tmp_path):
    it = trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=1e9)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        max_steps=9,
    )
    it.train()
    assert it.state.global_step == 2
    assert not any(isinstance(callback, RetainBudgetCallback) for callback in it.callback_handler.callbacks)


def test_targets_on_one_point_raise_the_collapse_alarm(tmp_path, caplog):
    it = trainer(tmp_path)
    rows = 6
    predictions = it.setting.states.h[:1].expand(rows, -1).numpy()
    group = it.setting.plan.groups.of_type("thing", held_out=True)[0]
    labels = (torch.arange(rows).numpy(), torch.full((rows,), group).numpy())
    with caplog.at_level(logging.WARNING):
        found = it._metrics(type("P", (), {"predictions": predictions, "label_ids": labels}))
    assert 0 <= found["variance_ratio"] < 1e-12
    assert "collapsed" in caplog.text


def test_entities_of_ones_own_are_judged(tmp_path):
    it = trainer(tmp_path)
    known = it.evaluate(entities("known", 8, seed=5), metric_key_prefix="fresh")
    assert {"fresh_loss", "fresh_known_auc", "fresh_toward"} <= known.keys()
    assert known["fresh_known_auc"] > it.evaluate(entities("unknown", 8, seed=5))["eval_known_auc"]


def test_data_sets_are_taken_where_entity_sets_are(tmp_path):
    given = parts()
    rows = {
        name: Dataset.from_list([e.to_dict() for e in given[name]]) for name in ("train_dataset", "known", "unknown")
    }
    one = trainer(tmp_path / "sets", max_steps=2)
    two = trainer(tmp_path / "rows", max_steps=2, **rows)
    assert one.train().training_loss == two.train().training_loss
    assert one.evaluate()["eval_loss"] == two.evaluate(rows["train_dataset"])["eval_loss"]


def test_all_but_the_model_and_the_settings_is_given_by_name(tmp_path):
    given = parts()
    with pytest.raises(TypeError, match="positional"):
        SAEAlignmentTrainer(given.pop("model"), settings(tmp_path), given.pop("train_dataset"), **given)
