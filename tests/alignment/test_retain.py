"""Predictions that a training holds: the KL at a few places, its budget, and only the passes that it needs."""

import math

import pytest
import torch
from tiny_entities import entities, parts, settings
from tiny_trainer import trainer, without_attributes

from sae_unlearn.alignment import AlignmentError
from sae_unlearn.backbone.layers import find_decoder_layers


@pytest.mark.slow
def test_blocks_past_the_layer_run_for_retain_rows_alone(tmp_path):
    for kl_weight, runs in ((1.0, 2), (0.0, 0)):  # base and tuned
        it = trainer(tmp_path, kl_weight=kl_weight, max_steps=1)
        layers = find_decoder_layers(it.model.get_base_model()).layers
        calls = [0] * len(layers)
        for i, layer in enumerate(layers):

            def count(*_, i=i, calls=calls):
                calls[i] += 1

            layer.register_forward_pre_hook(count)
        it.train()
        assert calls == [runs + 1, runs + 1, runs, runs]


@pytest.mark.slow
def test_training_stops_over_the_retain_budget_and_the_best_model_within_it_is_kept(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 60, "kl_weight": 0.0001, "learning_rate": 3e-2}
    free = trainer(tmp_path / "free", **options)
    free.train()
    kls = [log["eval_kl"] for log in free.state.log_history if "eval_kl" in log]
    budget = sorted(kls)[len(kls) // 2]
    it = trainer(
        tmp_path / "held",
        retain_budget=budget,
        load_best_model_at_end=True,
        metric_for_best_model="budget_loss",
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    it.train()
    assert it.state.global_step < 60
    assert it.evaluate()["eval_kl"] <= budget
    assert any(log.get("eval_budget_loss") == math.inf for log in it.state.log_history)


def test_a_budget_that_is_never_measured_is_refused(tmp_path):
    with pytest.raises(AlignmentError, match="eval_strategy"):
        settings(tmp_path, retain_budget=0.1)
    measured = {"retain_budget": 0.1, "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(AlignmentError, match=r"retain_budget=0.1: expected kl_weight > 0"):
        settings(tmp_path, kl_weight=0.0, **measured)
    with pytest.raises(AlignmentError, match=r"^retain_budget=0\.1: .*got none"):
        trainer(
            tmp_path, known=without_attributes(entities("known", 20, seed=3)), retain_dataset=["w40 w41"], **measured
        )


@pytest.mark.slow
def test_nothing_to_hold_predictions_on_is_refused_and_kl_of_no_rows_is_not_told(tmp_path):
    known = without_attributes(parts()["known"])
    with pytest.raises(AlignmentError, match="kl_weight=1: "):
        trainer(tmp_path, known=known, retain_dataset=None)
    assert "eval_kl" not in trainer(tmp_path, known=known, retain_dataset=None, kl_weight=0.0).evaluate()
    it = trainer(tmp_path, known=known, retain_dataset=["w40 w41 w42"], max_steps=1)  # nothing is left to judge by
    found = it.evaluate()
    assert "eval_kl" not in found
    assert found["eval_loss"] == pytest.approx(
        found["eval_toward"] + 0.5 * found["eval_away"] + 0.5 * found["eval_mse"], rel=1e-5
    )
    it.train()
    assert any("kl" in log for log in it.state.log_history)


def test_predictions_are_compared_at_a_few_places_of_a_row_always_its_last(tmp_path):
    it = trainer(tmp_path, retain_positions=3)
    for i in range(len(it.train_dataset)):
        item = it.train_dataset[i]
        assert len(item["retain_at"]) == min(3, len(item["retain_ids"]) - 1)
        assert item["retain_at"][-1] == len(item["retain_ids"]) - 1
        assert 0 not in item["retain_at"]
    whole = trainer(tmp_path, retain_positions=None).train_dataset[0]
    assert whole["retain_at"] == list(range(1, len(whole["retain_ids"])))


def test_the_head_runs_at_those_places_alone_and_the_kl_is_that_of_the_full_logits(tmp_path):
    it = trainer(tmp_path, max_steps=3, retain_positions=2)
    it.train()
    batch = it.data_collator([it.train_dataset[i] for i in range(4)])
    seen = []
    hook = it.model.get_output_embeddings().register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:-1]))
    with torch.no_grad():
        found = it._kl(it.model.eval(), batch)
    hook.remove()
    assert [tuple(shape) for shape in seen] == [(1, 8), (1, 8)]
    rows = {"input_ids": batch["retain_ids"], "attention_mask": batch["retain_mask"]}
    with torch.no_grad():
        tuned = it.model(**rows).logits.log_softmax(-1)
        with it.model.disable_adapter():
            base = it.model(**rows).logits.log_softmax(-1)
    expected = (base.exp() * (base - tuned)).sum(-1)[batch["retain_at"]].sum()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
