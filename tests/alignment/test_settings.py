"""Every field of `TrainingArguments` is followed, as a test here or elsewhere shows, or refused by name."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_entities import entities, parts, settings
from torch.utils.data import SequentialSampler
from transformers import TrainerControl, TrainerState, TrainingArguments, get_scheduler

import sae_unlearn.alignment
from sae_unlearn.alignment import AlignmentError, SAEAlignmentConfig, SAEAlignmentTrainer
from sae_unlearn.alignment.callbacks import RetainBudgetCallback
from sae_unlearn.alignment.settings_checks import FIXED, NOT_FOLLOWED
from sae_unlearn.backbone.adapters_off import adapters_off


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


def trainer(folder, **options) -> SAEAlignmentTrainer:
    given = parts()
    own = {k: options.pop(k) for k in list(options) if k in (*given, "callbacks", "compute_metrics")}
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **{**given, **own})


def weights(it) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in it.model.named_parameters() if p.requires_grad}


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def batches(folder, **options) -> list[list[tuple[int, ...]]]:
    """The targets' rows of each batch that a training meets."""
    it = trainer(folder, **options)
    collate, met = it.data_collator, []

    def noting(items):
        met.append([tuple(item["input_ids"]) for item in items])
        return collate(items)

    it.data_collator = noting
    it.train()
    return met


# --- the table --------------------------------------------------------------------------------------------------------


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


# --- what is followed -------------------------------------------------------------------------------------------------


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


# --- data -------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(AlignmentError, match=r"dataloader_drop_last=True.*64 rows for batches of 1000"):
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


# --- what is saved ----------------------------------------------------------------------------------------------------


def named(*names) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(parts()["model"], config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[-1])
    return model


@pytest.mark.parametrize("names", [("default",), ("forget",), ("default", "forget"), ("other", "default")])
def test_the_best_state_is_kept_whatever_the_adapter_is_called(tmp_path, names):
    it = trainer(
        tmp_path / "out",
        model=named(*names),
        max_steps=4,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=1,
        save_only_model=True,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    it.train()
    losses = [log["eval_loss"] for log in it.state.log_history if "eval_loss" in log]
    assert it.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < losses[-1] * (1 - 1e-3), "else nothing is shown"
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert len(kept) == 2
    assert not list((tmp_path / "out").rglob("optimizer.pt"))
    folder = tmp_path / "saved"
    it.save_model(str(folder))
    assert not [path.name for path in folder.iterdir() if path.is_dir()]
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(parts()["model"], folder).eval()(ids).logits  # as the card says
        assert torch.equal(loaded, it.model.eval()(ids).logits)
        with adapters_off(it.model):
            assert not torch.equal(loaded, it.model(ids).logits)


def test_an_adapter_with_a_name_is_resumed(tmp_path):
    run = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", model=named("forget"), max_steps=4)
    whole.train()
    trainer(tmp_path / "cut", model=named("forget"), **run).train()
    it = trainer(tmp_path / "cut", model=named("forget"), **run)
    it.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert same(weights(whole), weights(it))


def test_no_pickle_of_the_settings_is_saved(tmp_path):
    it = trainer(tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=1)
    it.train()
    it.save_model(str(tmp_path / "saved"))
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"adapter_config.json", "checkpoint-2"} <= names
    assert "training_args.bin" not in names
    assert not [path for path in (tmp_path / "saved").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
