"""Training arguments of an alignment, in addition to those of `Trainer`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from sae_unlearn.alignment.loss import PARTS
from sae_unlearn.alignment.settings_checks import check_followed, check_without_steps
from sae_unlearn.errors import AlignmentError
from sae_unlearn.options.alignment import AlignmentOptions
from sae_unlearn.options.field import among_others, check_options, options_of
from sae_unlearn.options.train import TrainOptions


PRESETS = {
    "default": {"toward": "paired", "away": "hinge"},
    "centroid": {"toward": "centroid", "away": "repel"},
}
# Distances that can balance repulsion. The others are bounded, and repulsion is not.
_REPELLABLE = ("paired", "centroid")
_HELP = {each.name: {"help": f"{each.help[0].upper()}{each.help[1:]}."} for each in options_of(TrainOptions)}


@among_others(AlignmentOptions)
@dataclass
class SAEAlignmentConfig(AlignmentOptions, TrainingArguments):
    """`TrainingArguments` with the alignment's own settings, which are checked at construction.

        loss = toward_weight * toward + away_weight * away + kl_weight * kl + mse_weight * mse

    Other fields mean what they do in `TrainingArguments`. Those that an alignment cannot follow are refused by name
    (`sae_unlearn.alignment.settings_checks`). Defaults that differ: a learning rate of 5e-4, batches of 10 targets,
    logs every 10 steps. `dataloader_drop_last` drops rows of training only: evaluation reads all.

    With `init="closed_form"` the LoRA is solved for at the start of `train` (see `solve_alignment`). Without
    `max_steps` no step of training follows; epochs, evaluations and checkpoints are then refused, since no step reaches
    them. Without a `peft_config` the LoRA has rank 16 and covers the MLPs' output projections of `solve_layers`. Steps
    of training stop if `eval_kl` exceeds `retain_budget` (needs `eval_strategy`, and `kl_weight` > 0), and never with
    None. See `sae_unlearn.alignment.loss` for `toward` and `away`.

    Raises:
        AlignmentError: If a value is out of range. The message names it.
    """

    learning_rate: float = field(default=TrainOptions.learning_rate, metadata=_HELP["learning_rate"])
    per_device_train_batch_size: int = field(default=TrainOptions.batch_size, metadata=_HELP["batch_size"])
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The rows hold only what the loss needs."})

    def __post_init__(self) -> None:
        check_options(self, AlignmentError, AlignmentOptions)
        for part, name in PRESETS[self.preset].items():
            if getattr(self, part) is None:
                setattr(self, part, name)
        if self.toward_weight == 0 and (self.away_weight == 0 or self.away == "none"):
            raise AlignmentError(
                "toward_weight=0, away_weight=0: expected one above 0. Otherwise nothing moves the targets."
            )
        layers = self.solve_layers
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise AlignmentError(f"solve_layers={layers!r}: expected layers, each once. Name some.")
        self._check_repulsion()
        check_followed(self)
        if self.solves_only:
            check_without_steps(self)
            self.num_train_epochs, self.max_steps = 0.0, -1
        elif self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise AlignmentError(
                f'num_train_epochs={self.num_train_epochs:g}: expected more than 0 with init="zero", which trains. '
                'Set it, or max_steps. (Settings with init="closed_form" have 0.)'
            )
        TrainingArguments.__post_init__(self)
        if self.retain_budget is None or self.solves_only:
            return
        if self.eval_strategy == "no":
            raise AlignmentError(
                f"retain_budget={self.retain_budget:g}: expected evaluations, which measure eval_kl. Set "
                'eval_strategy="steps" and eval_steps.'
            )
        if self.kl_weight == 0:
            raise AlignmentError(
                f"retain_budget={self.retain_budget:g}: expected kl_weight > 0, which measures eval_kl. "
                "Set a small one."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the Hub's token, which a pickle of the settings must not contain."""
        return self.__dict__ | {"hub_token": None}

    @property
    def solves_only(self) -> bool:
        """True if the LoRA is solved for and no step of training follows."""
        return self.init == "closed_form" and not vars(self)["max_steps"] > 0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each part of the loss."""
        return {part: getattr(self, f"{part}_weight") for part in PARTS}

    def _check_repulsion(self) -> None:
        if self.away != "repel" or self.away_weight == 0:
            return
        if self.toward not in _REPELLABLE:
            raise AlignmentError(
                f'away="repel": expected toward="centroid" or "paired", got "{self.toward}", which is bounded. '
                'Set one of them, or away="hinge".'
            )
        if self.away_weight >= self.toward_weight:
            raise AlignmentError(
                f'away="repel": expected lambda = away_weight / toward_weight below 1, got {self.away_weight:g} / '
                f"{self.toward_weight:g}, without a minimum. Set a smaller away_weight, or "
                'away="hinge".'
            )
