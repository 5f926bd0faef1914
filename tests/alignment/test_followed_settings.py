"""Fields of `TrainingArguments` that an alignment follows: optimizer, logs, evaluations and batches."""

import pytest
import torch
from tiny_entities import parts
from tiny_trainer import batches, same, trainer, weights
from transformers import get_scheduler


def test_the_optimizer_s_settings_are_followed(tmp_path):
    own = {"num_cycles": 2}
    it = trainer(
        tmp_path,
        max_steps=3,
        optim="adamw_torch",
        adam_beta1=0.7,
        adam_beta2=0.8,
        adam_epsilon=1e-4,
        weight_decay=0.3,
        learning_rate=0.02,
        lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs=own,
        warmup_steps=1,
    )
    it.train()
    group = it.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.7, 0.8), 1e-4, 0.3)
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    wanted = get_scheduler("cosine_with_restarts", plain, 1, 3, own)
    expected = []
    for _ in range(3):
        expected.append(plain.param_groups[0]["lr"])
        plain.step(), wanted.step()
    logged = [log["learning_rate"] for log in it.state.log_history if "learning_rate" in log]
    assert logged == pytest.approx(expected) or logged == pytest.approx([*expected[1:], logged[-1]])
    short = trainer(
        tmp_path, max_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=1e-3
    )
    before = weights(short)
    short.train()
    moved = torch.cat([(after - before[name]).flatten() for name, after in weights(short).items()])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_epochs_and_batches_are_counted_in_targets(tmp_path):
    seen = batches(tmp_path, max_steps=-1, num_train_epochs=1.5, per_device_train_batch_size=24)
    assert [len(batch) for batch in seen][:5] == [24, 24, 16, 24, 24]  # of 64 rows


def test_logs_come_when_they_are_asked_for(tmp_path):
    it = trainer(tmp_path, max_steps=4, logging_strategy="steps", logging_steps=3, logging_first_step=True)
    it.train()
    assert [log["step"] for log in it.state.log_history if "loss" in log] == [1, 3]


def test_evaluations_come_when_they_are_asked_for(tmp_path):
    it = trainer(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    it.train()
    assert [log["step"] for log in it.state.log_history if "eval_loss" in log] == [0, 2, 4]


def test_the_size_of_a_batch_is_nothing_to_an_evaluation(tmp_path):
    whole = trainer(tmp_path, per_device_eval_batch_size=64).evaluate()
    it = trainer(tmp_path, per_device_eval_batch_size=3, eval_accumulation_steps=1)
    found = it.evaluate()
    for name in ("loss", "toward", "away", "known_auc", "variance_ratio"):
        assert found[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=1e-4), name
    alone = trainer(tmp_path, prediction_loss_only=True).evaluate()
    assert "eval_known_auc" not in alone
    assert alone["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-4)


def test_metrics_of_the_user_are_given_what_they_ask_for(tmp_path):
    def measured(prediction):
        return {"rows": float(len(prediction.inputs)), "losses": float(len(prediction.losses))}

    found = trainer(tmp_path, compute_metrics=measured, include_for_metrics=["inputs", "loss"]).evaluate()
    assert found["eval_rows"] == found["eval_losses"] == len(parts()["train_dataset"])


def test_a_batch_that_does_not_fit_is_halved(tmp_path):
    it = trainer(tmp_path, auto_find_batch_size=True, max_steps=2)
    step, sizes = it.training_step, []

    def full(model, inputs, *args):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise RuntimeError("CUDA out of memory.")
        return step(model, inputs, *args)

    it.training_step = full
    it.train()
    assert sizes[0] == 4
    assert sizes[-1] < 4
    assert it.state.global_step == 2


def test_full_determinism_trains(tmp_path):
    try:
        found = []
        for _ in range(2):
            it = trainer(tmp_path, full_determinism=True, max_steps=2)
            it.train()
            found.append(weights(it))
        assert torch.are_deterministic_algorithms_enabled()
        assert same(*found)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("across", [True, False])
def test_counts_are_those_of_all_processes_or_of_each(tmp_path, across):
    it = trainer(tmp_path, average_tokens_across_devices=across)
    batch = it.data_collator([it.train_dataset[i] for i in range(4)])
    own = it._get_num_items_in_batch([batch], torch.device("cpu"))

    class Two:
        num_processes = 2

        def reduce(self, counts, how):
            return 2 * counts

    it.accelerator, whole = Two(), it.accelerator
    it.args.__class__ = type("Args", (type(it.args),), {"world_size": 2})
    counts = it._get_num_items_in_batch([batch], torch.device("cpu"))
    assert torch.equal(counts, 2 * own if across else own)
    it.accelerator = whole
