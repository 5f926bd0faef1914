"""Fields of `TrainingArguments` about rows: their order, who loads them, and that none is dropped."""

import pytest
from tiny_entities import entities, settings
from tiny_trainer import batches, same, trainer, weights
from torch.utils.data import SequentialSampler
from transformers import TrainerControl, TrainerState

from sae_unlearn.alignment import AlignmentError
from sae_unlearn.alignment.callbacks import RetainBudgetCallback


def test_the_order_of_the_rows_is_the_one_that_is_asked_for(tmp_path):
    it = trainer(tmp_path, train_sampling_strategy="sequential", max_steps=2)
    assert isinstance(it._get_train_sampler(), SequentialSampler)
    in_order = batches(tmp_path, train_sampling_strategy="sequential", max_steps=2)
    assert in_order[0] == [tuple(it.train_dataset[i]["input_ids"]) for i in range(4)]
    by_length = trainer(tmp_path, train_sampling_strategy="group_by_length")
    sampler = by_length._get_train_sampler()
    assert list(sampler.lengths) == [len(item["input_ids"]) for item in by_length.train_dataset]
    assert batches(tmp_path, data_seed=7) != batches(tmp_path, data_seed=8)
    run = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": "sequential"}
    trainer(tmp_path / "cut", **run).train()
    for ignored, first in ((True, 0), (False, 2)):
        resumed = trainer(tmp_path / "cut", ignore_data_skip=ignored, **run)
        met = []
        step = resumed.training_step
        resumed.training_step = lambda m, inputs, *a, met=met, step=step: met.append(inputs) or step(m, inputs, *a)
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
        wanted = [resumed.train_dataset[4 * first + i]["pair"] for i in range(4)]
        assert met[0]["pair"].tolist() == wanted


def test_workers_load_the_same_rows(tmp_path):
    plain = trainer(tmp_path, max_steps=2)
    plain.train()
    it = trainer(
        tmp_path,
        max_steps=2,
        dataloader_num_workers=1,
        dataloader_prefetch_factor=1,
        dataloader_pin_memory=False,
        dataloader_multiprocessing_context="fork",
        dataloader_in_order=True,
    )
    it.train()
    assert same(weights(plain), weights(it))


def test_workers_that_stay_judge_the_entities_that_they_are_given(tmp_path):
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}
    others = entities("known", 8, seed=5)
    expected = trainer(tmp_path).evaluate(others)["eval_loss"]
    it = trainer(tmp_path, dataloader_persistent_workers=True, **options)
    own = it.evaluate()["eval_loss"]
    assert it.evaluate(others)["eval_loss"] == pytest.approx(expected, rel=1e-5) != own
    assert it.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)


def test_rows_of_evaluation_are_never_dropped(tmp_path):
    run = {"max_steps": 6, "retain_budget": 1e-9, "eval_strategy": "steps", "eval_steps": 1}
    it = trainer(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=64, **run)
    assert {"eval_kl", "eval_known_auc", "eval_toward"} <= it.evaluate().keys()
    it.train()
    assert it.state.global_step < 6
    assert it.args.dataloader_drop_last
    epoch = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 24, "dataloader_drop_last": True}
    assert [len(batch) for batch in batches(tmp_path, **epoch)] == [24, 24]  # of 64 rows


def test_training_on_no_whole_batch_is_refused(tmp_path):
    it = trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=1000)
    with pytest.raises(AlignmentError, match=r"dataloader_drop_last=True.*64.*1000"):
        it.train()


def test_a_budget_that_is_only_measured_after_the_end_is_refused(tmp_path):
    run = {"max_steps": 4, "retain_budget": 1.0, "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(AlignmentError, match="eval_delay=5"):
        trainer(tmp_path, eval_delay=5, **run).train()
    it = trainer(tmp_path, eval_delay=4, **run)
    it.train()
    assert [log["step"] for log in it.state.log_history if "eval_kl" in log] == [4]


def test_an_evaluation_without_the_kl_that_a_budget_needs_is_refused(tmp_path):
    budget = RetainBudgetCallback(1.0)
    control = TrainerControl()
    with pytest.raises(AlignmentError, match="retain_budget=1: expected eval_kl"):
        budget.on_evaluate(settings(tmp_path), TrainerState(), control, {"eval_loss": 1.0})
    budget.on_evaluate(settings(tmp_path), TrainerState(), control, {"others_loss": 1.0})
    assert not control.should_training_stop
