"""Options of `sae-unlearn train`. `SAEAlignmentConfig` takes its own defaults from here."""

from dataclasses import dataclass
from typing import Literal

from sae_unlearn.options.field import option


_ALIGN, _TRAIN, _LABEL = "alignment", "training", "candidates"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of an alignment on the command line. `SAEAlignmentConfig` has more."""

    layer: int | None = option(
        None, "0-based decoder layer whose output is aligned", group=_ALIGN, shown="the layer of the SAE"
    )
    preset: Literal["default", "centroid"] = option("default", "parts of the loss", group=_ALIGN)
    init: Literal["zero", "closed_form"] = option(
        "closed_form", "the LoRA is solved for without training, or trained from zero", group=_ALIGN
    )
    min_separation: float = option(0.8, "refuse to train below this AUC on held-out entities", group=_ALIGN)
    chat_template: bool = option(False, "apply the tokenizer's chat template to prompts", group=_ALIGN)
    retain_budget: float | None = option(
        None,
        "largest KL on held-out retain rows, in nats per token; training stops above it",
        group=_ALIGN,
        shown="0.04; none with zero",
    )
    covariance_cache: str | None = option(
        None, "folder in which --init closed_form keeps its covariances", group=_ALIGN, shown="not kept"
    )
    lora_rank: int | None = option(
        None, "rank of the LoRA; its alpha is twice that", group=_ALIGN, shown="16; 8 with zero"
    )
    learning_rate: float = option(5e-4, "initial learning rate", group=_TRAIN)
    num_train_epochs: float = option(3.0, "passes over the targets, with --init zero", group=_TRAIN)
    max_steps: int = option(
        -1, "optimizer steps: after a solution, or instead of epochs", group=_TRAIN, shown="none; by epochs with zero"
    )
    batch_size: int = option(10, "targets in a batch of each process", group=_TRAIN)
    eval_steps: int | None = option(
        None, "steps between evaluations", group=_TRAIN, shown="10 with steps and a retain budget, or else never"
    )
    save_steps: int | None = option(None, "steps between checkpoints", group=_TRAIN, shown="never")
    resume: bool = option(False, "continue from the last checkpoint in --output", group=_TRAIN)
    seed: int = option(42, "seed of all random choices", group=_TRAIN)
    min_known: int | None = option(
        None,
        "attributes that the model must answer for a candidate to be known",
        group=_LABEL,
        shown="2; 1 if none has more",
    )
