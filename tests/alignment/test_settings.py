"""Every field of `TrainingArguments` is followed, as a test here or elsewhere shows, or refused by name."""

import dataclasses
import re
from pathlib import Path

import pytest
from tiny_entities import settings
from transformers import TrainingArguments

import sae_unlearn.alignment
from sae_unlearn.alignment import AlignmentError, SAEAlignmentConfig
from sae_unlearn.alignment.settings_checks import FIXED, NOT_FOLLOWED


HERE = Path(__file__).parent
# Field -> the test that sees it followed, here or in another file of this folder.
TESTED = {
    "activation_checkpointing": "test_gradient_checkpointing_gives_the_same_weights",  # its alias
    "activation_checkpointing_kwargs": "test_gradient_checkpointing_gives_the_same_weights",
    "adam_beta1": "test_the_optimizer_s_settings_are_followed",
    "adam_beta2": "test_the_optimizer_s_settings_are_followed",
    "adam_epsilon": "test_the_optimizer_s_settings_are_followed",
    "auto_find_batch_size": "test_a_batch_that_does_not_fit_is_halved",
    "average_tokens_across_devices": "test_counts_are_those_of_all_processes_or_of_each",
    "bf16": "test_bfloat16_autocast_trains",
    "data_seed": "test_the_order_of_the_rows_is_the_one_that_is_asked_for",
    "dataloader_drop_last": "test_rows_of_evaluation_are_never_dropped",
    "dataloader_in_order": "test_workers_load_the_same_rows",
    "dataloader_multiprocessing_context": "test_workers_load_the_same_rows",
    "dataloader_num_workers": "test_workers_load_the_same_rows",
    "dataloader_persistent_workers": "test_workers_that_stay_judge_the_entities_that_they_are_given",
    "dataloader_pin_memory": "test_workers_load_the_same_rows",
    "dataloader_prefetch_factor": "test_workers_load_the_same_rows",
    "deepspeed": "test_processes.py",
    "eval_accumulation_steps": "test_the_size_of_a_batch_is_nothing_to_an_evaluation",
    "eval_delay": "test_a_budget_that_is_only_measured_after_the_end_is_refused",
    "eval_on_start": "test_evaluations_come_when_they_are_asked_for",
    "eval_steps": "test_evaluations_come_when_they_are_asked_for",
    "eval_strategy": "test_evaluations_come_when_they_are_asked_for",
    "fsdp": "test_processes.py",
    "fsdp_config": "test_processes.py",
    "full_determinism": "test_full_determinism_trains",
    "gradient_accumulation_steps": "test_accumulation_gives_what_one_large_batch_gives",
    "gradient_checkpointing": "test_gradient_checkpointing_gives_the_same_weights",
    "gradient_checkpointing_kwargs": "test_gradient_checkpointing_gives_the_same_weights",
    "greater_is_better": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "hub_always_push": "test_what_is_pushed_while_it_trains_has_our_card_and_holds_no_token",
    "hub_model_id": "test_it_is_pushed_with_our_card_and_loads_at_its_commit",
    "hub_private_repo": "test_a_private_repository_opens_with_its_owner_s_token_only",
    "hub_strategy": "test_what_is_pushed_while_it_trains_has_our_card_and_holds_no_token",
    "hub_token": "test_what_is_pushed_names_no_target_and_holds_no_token",
    "ignore_data_skip": "test_the_order_of_the_rows_is_the_one_that_is_asked_for",
    "include_for_metrics": "test_metrics_of_the_user_are_given_what_they_ask_for",
    "learning_rate": "test_the_optimizer_s_settings_are_followed",
    "load_best_model_at_end": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "logging_first_step": "test_logs_come_when_they_are_asked_for",
    "logging_steps": "test_logs_come_when_they_are_asked_for",
    "logging_strategy": "test_logs_come_when_they_are_asked_for",
    "lr_scheduler_kwargs": "test_the_optimizer_s_settings_are_followed",
    "lr_scheduler_type": "test_the_optimizer_s_settings_are_followed",
    "max_grad_norm": "test_the_optimizer_s_settings_are_followed",
    "max_steps": "test_logs_come_when_they_are_asked_for",
    "metric_for_best_model": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "num_train_epochs": "test_epochs_and_batches_are_counted_in_targets",
    "optim": "test_the_optimizer_s_settings_are_followed",
    "output_dir": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "per_device_eval_batch_size": "test_the_size_of_a_batch_is_nothing_to_an_evaluation",
    "per_device_train_batch_size": "test_epochs_and_batches_are_counted_in_targets",
    "prediction_loss_only": "test_the_size_of_a_batch_is_nothing_to_an_evaluation",
    "push_to_hub": "test_what_is_pushed_while_it_trains_has_our_card_and_holds_no_token",
    "save_only_model": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "save_steps": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "save_strategy": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "save_total_limit": "test_the_best_state_is_kept_whatever_the_adapter_is_called",
    "seed": "test_the_same_seed_gives_the_same_weights_and_another_seed_others",
    "train_sampling_strategy": "test_the_order_of_the_rows_is_the_one_that_is_asked_for",
    "warmup_steps": "test_the_optimizer_s_settings_are_followed",
    "weight_decay": "test_the_optimizer_s_settings_are_followed",
}
# Read by code of `Trainer` that is not overridden here, and about where things run or are written, not about what is
# learned. A test below holds that no code of the alignment reads them.
TRAINERS_OWN = {
    "accelerator_config",
    "dataloader_multiprocessing_context",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "debug",
    "disable_tqdm",
    "enable_jit_checkpoint",
    "fp16",
    "hub_revision",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_nan_inf_filter",
    "optim_args",
    "project",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "save_on_each_node",
    "skip_memory_metrics",
    "tf32",
    "torch_empty_cache_steps",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "use_cpu",
}
# `Trainer` reads none of them either: transformers documents them as being for scripts.
FOR_SCRIPTS = {"do_eval", "do_predict", "do_train", "resume_from_checkpoint"}
REFUSED_VALUES = {
    "batch_eval_metrics": True,
    "bf16_full_eval": True,
    "ddp_static_graph": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "fp16_full_eval": True,
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "label_smoothing_factor": 0.3,
    "length_column_name": "size",
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 50.0,
    "optim_target_modules": ["q_proj"],
    "parallelism_config": object(),
    "remove_unused_columns": True,
    "torch_compile": True,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "use_cache": True,
    "use_liger_kernel": True,
}


def test_every_field_is_in_the_table_once():
    groups = ({*NOT_FOLLOWED, *FIXED}, {*TESTED}, TRAINERS_OWN - {*TESTED}, FOR_SCRIPTS)
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields <= set().union(*groups), "say of a new field whether an alignment follows it"
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert {*REFUSED_VALUES} == {*NOT_FOLLOWED, *FIXED}


def test_the_tests_that_the_table_names_are_there():
    files = {path.name: path.read_text() for path in HERE.glob("test_*.py")}
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(files.values()), re.MULTILINE)) | {*files}
    assert set(TESTED.values()) <= defined


def test_our_own_code_reads_no_field_that_is_left_to_the_trainer():
    folder = Path(sae_unlearn.alignment.__file__).parent
    text = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    read = set(re.findall(r"\bargs\.(\w+)", text))
    assert not read & ((TRAINERS_OWN - {*TESTED}) | FOR_SCRIPTS)


@pytest.mark.parametrize(("field", "value"), REFUSED_VALUES.items())
def test_what_is_not_followed_is_refused_by_name(tmp_path, field, value):
    if field not in {f.name for f in dataclasses.fields(TrainingArguments)}:
        pytest.skip("this transformers has no such field")
    with pytest.raises(AlignmentError, match=f"^{field}="):
        settings(tmp_path, **{field: value})


def test_settings_survive_a_copy_and_a_round_trip(tmp_path):
    args = settings(tmp_path)
    again = dataclasses.replace(args, seed=3)
    assert again.seed == 3
    values = {k: v for k, v in args.to_dict().items() if k in {f.name for f in dataclasses.fields(args) if f.init}}
    values["accelerator_config"] = None  # which transformers does not read back as it wrote it
    assert SAEAlignmentConfig(**values).kl_weight == args.kl_weight


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kl_weight", "1"),
        ("min_separation", "a"),
        ("held_out_fraction", None),
        ("retain_budget", "x"),
        ("solve_lam", "q"),
        ("solve_gamma", True),
        ("solve_layers", 3),
        ("question_forms", "yes"),
        ("chat_template", 1),
        ("license", 3),
        ("templates", 3),
        ("covariance_cache", 3),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(tmp_path, field, value):
    with pytest.raises(AlignmentError, match=f"^{field}="):
        SAEAlignmentConfig(str(tmp_path), **{field: value})
