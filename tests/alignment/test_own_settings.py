"""Every field that `SAEAlignmentConfig` adds to `TrainingArguments` does what it says."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from tiny_entities import parts, settings
from transformers import TrainingArguments

from sae_unlearn.alignment import SAEAlignmentConfig, SAEAlignmentTrainer
from sae_unlearn.alignment import reference as setting
from sae_unlearn.backbone.layers import find_decoder_layers


# Field -> the test that sees it followed, here or in another file of this folder.
TESTED = {
    "away": "test_every_kind_of_loss_trains",
    "away_weight": "test_parts_count_by_their_weights",
    "covariance_cache": "test_a_second_run_reads_the_covariances_and_finds_the_same",
    "chat_template": "test_prompts_are_put_into_the_chat_template",
    "draws_per_prompt": "test_numbers_of_entities_rows_and_draws",
    "held_out_fraction": "test_however_many_are_held_out_two_of_each_kind_are_left",
    "held_out_templates": "test_templates_and_questions_are_those_that_are_given",
    "init": "test_it_is_solved_within_the_budget_and_takes_no_step",
    "kl_weight": "test_parts_count_by_their_weights",
    "layer": "test_without_an_sae_the_same_loss_is_taken_on_hidden_states",
    "license": "test_the_settings_give_the_license_and_the_repository_of_what_is_only_saved",
    "matched_unknown": "test_numbers_of_entities_rows_and_draws",
    "max_generic_frequency": "test_numbers_of_latents",
    "max_reference_entities": "test_numbers_of_entities_rows_and_draws",
    "min_separation": "test_what_cannot_be_trained_is_refused_by_name",
    "mse_weight": "test_parts_count_by_their_weights",
    "num_known_latents": "test_numbers_of_latents",
    "num_unknown_latents": "test_numbers_of_latents",
    "pairs_per_target": "test_numbers_of_entities_rows_and_draws",
    "preset": "test_a_preset_names_the_parts_that_are_not_named",
    "question_forms": "test_targets_are_moved_in_the_forms_of_questions_and_short_prompts_stay",
    "questions": "test_templates_and_questions_are_those_that_are_given",
    "reference_batch_size": "test_no_pass_of_the_start_is_larger_than_asked_for",
    "retain_budget": "test_training_stops_over_the_retain_budget_and_the_best_model_within_it_is_kept",
    "retain_max_length": "test_numbers_of_entities_rows_and_draws",
    "retain_positions": "test_predictions_are_compared_at_a_few_places_of_a_row_always_its_last",
    "short_prompts": "test_targets_are_moved_in_the_forms_of_questions_and_short_prompts_stay",
    "solve_gamma": "test_settings_of_the_solve_are_followed",
    "solve_lam": "test_settings_of_the_solve_are_followed",
    "solve_layers": "test_settings_of_the_solve_are_followed",
    "solve_sweeps": "test_settings_of_the_solve_are_followed",
    "templates": "test_templates_and_questions_are_those_that_are_given",
    "toward": "test_every_kind_of_loss_trains",
    "toward_weight": "test_parts_count_by_their_weights",
}


def trainer(folder, **options) -> SAEAlignmentTrainer:
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **parts())


def test_every_own_field_has_a_test():
    own = {f.name for f in dataclasses.fields(SAEAlignmentConfig)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    assert own == {*TESTED}
    text = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert set(TESTED.values()) <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))


def test_parts_count_by_their_weights(tmp_path):
    weights = {"toward_weight": 2.0, "away_weight": 0.25, "kl_weight": 3.0, "mse_weight": 1.5}
    it = trainer(tmp_path, max_steps=2, **weights)
    it.train()
    logs = [log for log in it.state.log_history if "loss" in log]
    for log in (*logs, {k.removeprefix("eval_"): v for k, v in it.evaluate().items()}):
        expected = sum(weight * log[name.removesuffix("_weight")] for name, weight in weights.items())
        assert log["loss"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"preset": "centroid", "away_weight": 0.25}, ("centroid", "repel")),
        ({"preset": "centroid", "away": "none"}, ("centroid", "none")),
        ({}, ("paired", "hinge")),
    ],
)
def test_a_preset_names_the_parts_that_are_not_named(tmp_path, given, expected):
    args = settings(tmp_path, **given)
    assert (args.toward, args.away) == expected


def test_numbers_of_entities_rows_and_draws(tmp_path, monkeypatch):
    asked = []
    match = setting.match_unknown

    def noting(targets, unknown, per_target, seed):
        asked.append(per_target)
        return match(targets, unknown, per_target=per_target, seed=seed)

    monkeypatch.setattr(setting, "match_unknown", noting)
    numbers = {"matched_unknown": 5, "pairs_per_target": 3, "draws_per_prompt": 6}
    it = trainer(tmp_path, max_reference_entities=10, retain_max_length=5, min_separation=0.0, **numbers)
    assert set(asked) == {5}
    assert len(it.setting.plan.known) == len(it.setting.plan.unknown) == 10
    assert max(map(len, it.setting.plan.retain)) == 5
    rows = it.train_dataset
    assert len(rows) == len(rows.targets) * 6 == 4 * 2 * 6
    assert {len({rows[i * 6 + j]["pair"] for j in range(6)}) for i in range(len(rows.targets))} == {3}


def test_targets_are_moved_in_the_forms_of_questions_and_short_prompts_stay(tmp_path):
    plain = trainer(tmp_path, min_separation=0.0)
    target = plain.train_dataset.targets
    short = ["w10 w11 w12", "w13 w14 w15", "w16 w17 w18", f"w20 {parts()['train_dataset'][0].entity} w21"]
    it = trainer(tmp_path, min_separation=0.0, question_forms=True, short_prompts=short)
    assert len(it.train_dataset.targets) == len(target) * 3 // 2  # a third prompt beside the two templates
    tokenizer = parts()["processing_class"]
    begins = tokenizer("w66").input_ids
    assert sum(row.input_ids[: len(begins)] == begins for row in it.train_dataset.targets) == 4
    rows = [tokenizer(text).input_ids for text in short]
    plan = it.setting.plan
    seen = {tuple(row) for row in (*plan.retain, *plan.eval_retain)}
    assert [tuple(row) in seen for row in rows] == [True, True, True, False]
    assert [row for row in rows[:3] if tuple(row) in {*map(tuple, plan.eval_retain)}]  # some judge


def test_numbers_of_latents(tmp_path):
    it = trainer(tmp_path, num_known_latents=3, num_unknown_latents=2, min_separation=0.0)
    assert (len(it.latents.known), len(it.latents.unknown)) == (3, 2)
    rare = trainer(tmp_path, max_generic_frequency=0.02, min_separation=0.0).latents
    usual = trainer(tmp_path, min_separation=0.0).latents
    assert set(rare.known) | set(rare.unknown) != set(usual.known) | set(usual.unknown)


def test_templates_and_questions_are_those_that_are_given(tmp_path):
    given = parts()
    tokenizer = given["processing_class"]
    it = trainer(
        tmp_path,
        templates={"thing": "w80 {entity}"},
        held_out_templates={"thing": "w81 {entity}"},
        questions={"thing": {"colour": "w82 {entity}"}},
        min_separation=0.0,
    )

    def first(rows):
        return {tokenizer.decode(row[1:2] if row[0] == tokenizer.bos_token_id else row[:1]) for row in rows}

    assert first(row.input_ids for row in it.train_dataset.targets) == {"w80"}
    assert first(row.input_ids for row in it.eval_dataset.targets) == {"w81"}
    assert "w82" in first(it.setting.plan.retain)


def test_prompts_are_put_into_the_chat_template(tmp_path):
    given = parts()
    tokenizer = given["processing_class"]
    tokenizer.chat_template = "{% for m in messages %}w90 {{ m.content }} w91{% endfor %}"
    args = settings(tmp_path, chat_template=True, min_separation=0.0)
    it = SAEAlignmentTrainer(args=args, **given)
    assert all("w90" in tokenizer.decode(row.input_ids) for row in it.train_dataset.targets)
    assert all("w90" in tokenizer.decode(row) for row in it.setting.plan.text_rows)


def test_no_pass_of_the_start_is_larger_than_asked_for(tmp_path):
    given = parts()
    sizes = []
    layer = find_decoder_layers(given["model"]).layers[0]
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    SAEAlignmentTrainer(args=settings(tmp_path, reference_batch_size=5), **given)
    assert max(sizes) == 5
