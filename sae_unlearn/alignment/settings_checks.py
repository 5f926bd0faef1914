"""Checks of `TrainingArguments` fields that an alignment cannot follow, each with its reason."""

import dataclasses
import logging
from typing import Any

from sae_unlearn.errors import AlignmentError


logger = logging.getLogger(__name__)

_PASSES = "passes over entities end inside the model"
# Fields that must be "off", with the reason. `tests/alignment/test_settings.py` has all other fields.
NOT_FOLLOWED = {
    "batch_eval_metrics": "the metrics compare all targets with each other",
    "bf16_full_eval": "it rounds the base weights, which are the reference, and leaves them so",
    "ddp_static_graph": f"{_PASSES}, so that the graph of a step changes",
    "eval_use_gather_object": "states and numbers are gathered as tensors",
    "fp16_full_eval": "it rounds the base weights, which are the reference, and leaves them so",
    "include_num_input_tokens_seen": "a step also reads rows that are not in input_ids",
    "label_names": "the loss has no labels of the model",
    "label_smoothing_factor": "the loss has no labels to smooth",
    "liger_kernel_config": "its kernels were not tried with passes that end inside the model",
    "neftune_noise_alpha": "the base runs without noise while its adapter is trained",
    "optim_target_modules": "it names modules of the base, which is frozen",
    "parallelism_config": f"{_PASSES}, at the last token of a name, and a part of the sequence or of a layer has none",
    "remove_unused_columns": "the loss reads all columns",
    "torch_compile": _PASSES,
    "torch_compile_backend": _PASSES,
    "torch_compile_mode": _PASSES,
    "use_cache": "no pass of a step uses a cache",
    "use_liger_kernel": "its kernels were not tried with passes that end inside the model",
}
# Fields that must keep their default, which is not "off".
FIXED = {
    "eval_do_concat_batches": (True, "the metrics compare all targets with each other"),
    "length_column_name": ("length", "lengths are those of input_ids"),
}
_OFF = (None, False, 0, 0.0, "", "no", "NO")


def check_followed(args: Any) -> None:
    """Raise if a setting is given that training would not follow.

    Args:
        args (TrainingArguments): With the given values, before `TrainingArguments` derives others.

    Raises:
        AlignmentError: If there is such a setting. The message names it.
    """
    for name, reason in NOT_FOLLOWED.items():
        value = getattr(args, name, None)
        if value not in _OFF and value != []:
            raise AlignmentError(f"{name}={value!r:.40}: expected it to be off, since {reason}. Omit it.")
    for name, (wanted, reason) in FIXED.items():
        value = getattr(args, name, wanted)
        if value != wanted:
            raise AlignmentError(f"{name}={value!r:.40}: expected {wanted!r}, since {reason}. Omit it.")


# What happens at a step or between steps, and what leaves it out, besides the field's default.
_BETWEEN_STEPS = {
    "num_train_epochs": (0,),
    "eval_strategy": ("no",),
    "save_strategy": ("no",),
    "save_steps": (),
    "load_best_model_at_end": (),
}
_OF_STEPS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


def check_without_steps(args: Any) -> None:
    """Raise if something is asked for between steps that are not taken; warn of settings of steps.

    Args:
        args (SAEAlignmentConfig): With `init="closed_form"`, and without `max_steps`.

    Raises:
        AlignmentError: If epochs, evaluations or checkpoints are asked for. The message names the setting.
    """
    default = {field.name: field.default for field in dataclasses.fields(args)}
    next_step = 'Set max_steps to train on from the solution, or init="zero" to train'
    for name, off in _BETWEEN_STEPS.items():
        value = getattr(args, name)
        if value != default[name] and value not in off:
            raise AlignmentError(
                f'{name}={value!r:.40}: expected none, since init="closed_form" takes no step without max_steps. '
                f"{next_step}, or omit it."
            )
    unused = [f"{name}={getattr(args, name)!r:.40}" for name in _OF_STEPS if getattr(args, name) != default[name]]
    if unused:
        logger.warning('%s: no effect, since init="closed_form" takes no step. %s.', ", ".join(unused), next_step)
