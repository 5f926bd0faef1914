"""Options of `sae-unlearn train`: those of an alignment, and those of its steps of training."""

from dataclasses import dataclass

from sae_unlearn.options.alignment import AlignmentOptions
from sae_unlearn.options.field import documented, option


_TRAIN, _LABEL = "training", "candidates"


@documented
@dataclass(kw_only=True)
class TrainOptions(AlignmentOptions):
    """Options of an alignment on the command line, and those of the steps of training."""

    lora_rank: int | None = option(
        None, "rank of the LoRA; its alpha is twice that", group="alignment", shown="16; 8 with zero", low=1
    )
    learning_rate: float = option(5e-4, "initial learning rate", group=_TRAIN, low=0)
    num_train_epochs: float = option(3.0, "passes over the targets, with --init zero", group=_TRAIN, low=0)
    max_steps: int = option(
        -1,
        "optimizer steps: after a solution, or instead of epochs",
        group=_TRAIN,
        shown="none; by epochs with zero",
        low=-1,
    )
    batch_size: int = option(10, "targets in a batch of each process", group=_TRAIN, low=1)
    eval_steps: int | None = option(
        None,
        "steps between evaluations",
        group=_TRAIN,
        shown="10 with steps and a retain budget, or else never",
        low=1,
    )
    save_steps: int | None = option(None, "steps between checkpoints", group=_TRAIN, shown="never", low=1)
    resume: bool = option(False, "continue from the last checkpoint in --output", group=_TRAIN)
    seed: int = option(42, "seed of all random choices", group=_TRAIN)
    min_known: int | None = option(
        None,
        "attributes that the model must answer for a candidate to be known",
        group=_LABEL,
        shown="2; 1 if none has more",
        low=1,
    )
