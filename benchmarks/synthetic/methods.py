"""The methods that are compared on the synthetic world, each with the settings it is chosen from."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.baselines import BudgetCallback, DamageBudget, get_method, train_baseline
from benchmarks.synthetic.measures import entity_set, validation_batches
from benchmarks.synthetic.setting import Setting
from benchmarks.synthetic.words import HELD_OUT_TEMPLATES, TEMPLATES, TRAIN_QUESTIONS
from benchmarks.synthetic.world import REFUSAL
from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.trainer import SAEAlignmentTrainer


OURS = {
    "ours": {"preset": "default"},
    "ours_centroid": {"preset": "centroid"},
    "ours_raw": {"preset": "default", "sae": None},
}
"""The alignment's presets, and the control: the same loss on raw hidden states."""

GRID: dict[str, dict[str, list[Any]]] = {
    "ours": {"learning_rate": [1e-3, 3e-3]},
    "ours_centroid": {"learning_rate": [1e-3]},
    "ours_raw": {"learning_rate": [1e-3, 3e-3]},
    "ga": {"learning_rate": [1e-4]},
    "grad_diff": {"learning_rate": [1e-4], "retain_weight": [5.0]},
    "npo": {"learning_rate": [1e-4], "retain_weight": [5.0]},
    "rmu": {"learning_rate": [1e-3], "steering": [4.0], "alpha": [10.0]},
    "refusal": {"learning_rate": [1e-4], "retain_weight": [5.0]},
}
"""Settings per method; every combination is tried on the validation seed, and nowhere else."""


class Trained(NamedTuple):
    """A model within the budget: `None` where the method had no state within it but the first."""

    model: PeftModel
    budget: DamageBudget
    facts: dict[str, Any]


def settings(method: str) -> list[dict[str, Any]]:
    """All combinations of a method's settings."""
    grid = GRID[method]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def lora(layer: int) -> LoraConfig:
    """The same shape for every method: rank 8 on every linear module of the blocks up to the SAE's layer."""
    return LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(layer + 1)),
        task_type="CAUSAL_LM",
    )


def train(
    setting: Setting, method: str, options: dict[str, Any], budget: float, steps: int = 300, every: int = 5
) -> Trained:
    """Train a LoRA by `method`, and put back the last state whose damage is within the budget."""
    seed, layer = setting.config.world.seed, setting.sae.layer
    torch.manual_seed(seed)
    model = get_peft_model(setting.fresh_model(), lora(layer))
    keeper = DamageBudget(model, validation_batches(setting.world, setting.tokenizer), budget, every)
    keeper(0, model)
    facts: dict[str, Any] = {}
    if method in OURS:
        facts = _align(setting, model, OURS[method] | options, steps, keeper)
    else:
        _baseline(setting, model, method, options, steps, keeper)
    keeper.restore(model)
    return Trained(model.eval(), keeper, facts)


def _baseline(
    setting: Setting, model: PeftModel, method: str, options: dict[str, Any], steps: int, keeper: DamageBudget
) -> None:
    options = dict(options)
    learning_rate = options.pop("learning_rate")
    if method == "rmu":
        options["layer"] = setting.sae.layer
    if method == "refusal":
        options["refusals"] = (REFUSAL,)
    world = setting.world
    train_baseline(
        model,
        setting.tokenizer,
        get_method(method, **options),
        world.facts(world.targets),
        world.facts(world.known) + world.unrelated(600, seed=76),
        steps,
        learning_rate,
        seed=setting.config.world.seed,
        batch_size=20,
        on_step=lambda step, model: step > 0 and keeper(step, model),
    )


def _align(
    setting: Setting, model: PeftModel, options: dict[str, Any], steps: int, keeper: DamageBudget
) -> dict[str, Any]:
    options = dict(options)
    sae = options.pop("sae", setting.sae)
    world = setting.world
    with tempfile.TemporaryDirectory() as folder:
        trainer = SAEAlignmentTrainer(
            model=model,
            args=SAEAlignmentConfig(
                output_dir=folder,
                init="zero",
                layer=setting.sae.layer,
                max_steps=steps,
                per_device_train_batch_size=20,
                warmup_steps=10,
                lr_scheduler_type="constant_with_warmup",
                templates=TEMPLATES,
                held_out_templates=HELD_OUT_TEMPLATES,
                questions=TRAIN_QUESTIONS,
                min_separation=0.0,  # reported instead
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                logging_strategy="no",
                seed=setting.config.world.seed,
                **options,
            ),
            sae=sae,
            processing_class=setting.tokenizer,
            train_dataset=entity_set(world.targets),
            known=entity_set(world.known),
            unknown=entity_set(world.unknown),
            retain_dataset=[row.text for row in world.unrelated(600, seed=76)],
            callbacks=[BudgetCallback(keeper)],
        )
        trainer.train()
    return {"separation": trainer.separation.to_dict()}
