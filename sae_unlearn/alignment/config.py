"""The settings of an alignment, beside those of any `Trainer`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from sae_unlearn.alignment.loss import AWAY, PARTS, TOWARD
from sae_unlearn.alignment.settings_checks import check_followed
from sae_unlearn.errors import AlignmentError
from sae_unlearn.options.train import TrainOptions


PRESETS = {
    "default": {"toward": "paired", "away": "hinge"},
    "centroid": {"toward": "centroid", "away": "repel"},
}
INITS = ("zero", "closed_form")
# Distances that repulsion can be balanced against: the others are bounded, and repulsion is not.
_REPELLABLE = ("paired", "centroid")


@dataclass
class SAEAlignmentConfig(TrainingArguments):
    """`TrainingArguments` with the alignment's own settings; all of its own are checked at construction.

        loss = toward_weight * toward + away_weight * away + kl_weight * kl + mse_weight * mse

    Where nothing else is said, a field means what it does in `TrainingArguments`; those that an alignment cannot follow
    are refused by name (`sae_unlearn.alignment.settings_checks`). Defaults that differ: a learning rate of 5e-4,
    batches of 10 targets, logs every 10 steps. `dataloader_drop_last` drops rows of training alone: evaluation reads
    all.

    Args:
        preset: "default" (paired, hinge), or "centroid" (centroid, repel), after the abstract of arXiv 2509.15631,
            whose equations could not be had.
        toward: "paired", "centroid", "cosine" or "mmd"; None is the preset's. See `sae_unlearn.alignment.loss`.
        away: "hinge", "triplet", "repel" or "none"; None is the preset's. See `sae_unlearn.alignment.loss`.
        toward_weight, away_weight: of these parts. With `away="repel"`, `away_weight / toward_weight` is lambda, and
            has to be below 1: from there on the loss has no minimum.
        kl_weight: of KL(base || tuned) on retain rows, in nats per token; 0 leaves these rows out of the pass.
        mse_weight: of the squared change of hidden states of known neighbours and unknown entities; 0 leaves it out.
        layer: 0-based decoder layer whose output is aligned; None is the SAE's.
        num_known_latents, num_unknown_latents: how many latents are looked at; without an SAE, the first is how many
            hidden dimensions count as known.
        max_generic_frequency: latents that fire on a larger share of ordinary tokens (of the retain text) are left out.
        pairs_per_target: unknown entities that a target is drawn to, the same ones all through training. With one, the
            targets come to spread as unknown entities do; with many, each is drawn to their middle.
        matched_unknown: a target's are drawn from this many of its type, those nearest in name length.
        draws_per_prompt: items for each target in each template in an epoch, each with other rows that are to stay.
        templates, held_out_templates: prompts per entity type, each with "{entity}"; None takes the package's. The
            latter serve evaluation alone.
        questions: prompts per entity type and attribute, asked about known neighbours in retain rows; None takes the
            package's.
        max_reference_entities: known, and unknown, entities whose states are kept as references.
        held_out_fraction: share of them kept for the separation report and for evaluation.
        min_separation: AUC on held-out entities below which training is refused; 0 never refuses.
        retain_max_length: tokens of a retain row.
        retain_positions: tokens of a retain row at which predictions are compared, its last one and others at random;
            None compares all. The output head, most of the work with a large vocabulary, is run nowhere else.
        retain_budget: stop once `eval_kl` exceeds so many nats per token (needs `eval_strategy`, and `kl_weight` > 0);
            None never stops.
        init: "zero" starts from a LoRA of zero and trains it. "closed_form" solves for it at the start of `train`, with
            forward passes only (see `solve_alignment`), within `retain_budget`, which is 0.03 if None; `max_steps`
            steps of training follow, and none by default, whatever `num_train_epochs` is. Without a `peft_config` the
            LoRA then has rank 16 and lies on the MLPs' output projections of `solve_layers`.
        solve_layers: 0-based layers that the closed form changes; None is the aligned layer and the four below it.
        solve_sweeps: sweeps over them.
        solve_lam: weight of what is to stay; None searches for the smallest within the budget.
        solve_gamma: overshoot, the share of the way by which goals lie beyond the unknown entities; None chooses that
            of the last sweep from what the sweeps before have left.
        covariance_cache: a folder in which the closed form keeps the second moments of what is to stay, one file of
            `4 * d_ffn^2` bytes per layer for each model and retain set; None keeps them in memory alone.
        question_forms: targets are also moved where they stand in the questions about their attributes, which hold no
            answers.
        short_prompts: short prompts of other relations on which predictions are to stay; None takes the package's own,
            in English. Those that name a target are left out.
        chat_template: put prompts into the tokenizer's chat template.
        reference_batch_size: rows per forward pass of the base model at the start.
        license: the adapter's own, as the Hub names licenses ("gemma"), for its card; None states none.

    Raises:
        AlignmentError: a value is out of range; the message names it.
    """

    learning_rate: float = field(default=TrainOptions.learning_rate, metadata={"help": "The initial learning rate."})
    per_device_train_batch_size: int = field(
        default=TrainOptions.batch_size, metadata={"help": "Targets in a batch, per device."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The rows hold only what the loss needs."})

    preset: str = field(default=TrainOptions.preset, metadata={"help": "default or centroid"})
    toward: str | None = field(default=None, metadata={"help": "paired, centroid, cosine or mmd"})
    away: str | None = field(default=None, metadata={"help": "hinge, triplet, repel or none"})
    toward_weight: float = field(default=1.0, metadata={"help": "Weight of the distance to unknown entities."})
    away_weight: float = field(default=0.5, metadata={"help": "Weight of what keeps targets from looking known."})
    kl_weight: float = field(default=1.0, metadata={"help": "Weight of KL(base || tuned) on retain rows."})
    mse_weight: float = field(default=0.5, metadata={"help": "Weight of the change of other entities' states."})
    layer: int | None = field(default=None, metadata={"help": "0-based decoder layer; the SAE's by default."})
    num_known_latents: int = field(default=32, metadata={"help": "Latents of known entities."})
    num_unknown_latents: int = field(default=32, metadata={"help": "Latents of unknown entities."})
    max_generic_frequency: float = field(default=0.02, metadata={"help": "Largest firing rate on ordinary tokens."})
    pairs_per_target: int = field(default=1, metadata={"help": "Unknown entities that a target is drawn to."})
    matched_unknown: int = field(default=16, metadata={"help": "Unknown entities that they are drawn from."})
    draws_per_prompt: int = field(default=8, metadata={"help": "Items per target, template and epoch."})
    templates: dict[str, Any] | None = field(default=None, metadata={"help": "Prompts per entity type."})
    held_out_templates: dict[str, Any] | None = field(default=None, metadata={"help": "Prompts for evaluation."})
    questions: dict[str, Any] | None = field(default=None, metadata={"help": "Questions per type and attribute."})
    max_reference_entities: int = field(default=256, metadata={"help": "Known, and unknown, entities kept."})
    held_out_fraction: float = field(default=0.3, metadata={"help": "Share of them that training does not see."})
    min_separation: float = field(
        default=TrainOptions.min_separation, metadata={"help": "Refuse to train below this AUC."}
    )
    retain_max_length: int = field(default=64, metadata={"help": "Tokens of a retain row."})
    retain_positions: int | None = field(default=8, metadata={"help": "Tokens of a retain row that are compared."})
    retain_budget: float | None = field(default=None, metadata={"help": "Stop above this eval_kl, in nats per token."})
    init: str = field(default=TrainOptions.init, metadata={"help": "zero or closed_form"})
    solve_layers: list[int] | None = field(default=None, metadata={"help": "Layers that the closed form changes."})
    solve_sweeps: int = field(default=2, metadata={"help": "Sweeps of the closed form over its layers."})
    solve_lam: float | None = field(default=None, metadata={"help": "Weight of what is to stay; searched for if None."})
    solve_gamma: float | None = field(default=None, metadata={"help": "Overshoot beyond the unknown entities."})
    covariance_cache: str | None = field(default=None, metadata={"help": "Folder for second moments."})
    question_forms: bool = field(default=True, metadata={"help": "Move targets in forms of questions as well."})
    short_prompts: list[str] | None = field(default=None, metadata={"help": "Short prompts that are to stay."})
    chat_template: bool = field(default=False, metadata={"help": "Use the tokenizer's chat template."})
    reference_batch_size: int = field(default=32, metadata={"help": "Rows per pass of the base model at the start."})
    license: str | None = field(default=None, metadata={"help": "The adapter's own license, for its card."})

    def __post_init__(self) -> None:
        _one_of("preset", self.preset, PRESETS)
        self.toward = PRESETS[self.preset]["toward"] if self.toward is None else self.toward
        self.away = PRESETS[self.preset]["away"] if self.away is None else self.away
        _one_of("toward", self.toward, TOWARD)
        _one_of("away", self.away, AWAY)
        for name in ("toward_weight", "away_weight", "kl_weight", "mse_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise AlignmentError(f"{name}={getattr(self, name)!r}; expected a finite number >= 0.")
        if self.toward_weight == 0 and (self.away_weight == 0 or self.away == "none"):
            raise AlignmentError("toward_weight and away_weight are both 0: nothing would move the targets.")
        for name in (
            "pairs_per_target",
            "matched_unknown",
            "draws_per_prompt",
            "retain_max_length",
            "reference_batch_size",
        ):
            _whole(name, getattr(self, name), 1)
        for name in ("num_known_latents", "num_unknown_latents"):
            _whole(name, getattr(self, name), 0)
        _whole("max_reference_entities", self.max_reference_entities, 8)
        for name in ("max_generic_frequency", "min_separation"):
            if not 0 <= getattr(self, name) <= 1:
                raise AlignmentError(f"{name}={getattr(self, name)!r}; expected a number from 0 to 1.")
        if not 0 < self.held_out_fraction < 1:
            raise AlignmentError(f"held_out_fraction={self.held_out_fraction!r}; expected a number between 0 and 1.")
        if self.layer is not None:
            _whole("layer", self.layer, 0)
        if self.retain_positions is not None:
            _whole("retain_positions", self.retain_positions, 1)
        if self.retain_budget is not None and not self.retain_budget > 0:
            raise AlignmentError(f"retain_budget={self.retain_budget!r}; expected a number of nats > 0, or None.")
        self._check_solve()
        self._check_repulsion()
        check_followed(self)
        if self.init == "closed_form" and self.max_steps <= 0:
            self.num_train_epochs, self.max_steps = 0.0, -1
        super().__post_init__()
        steps = self.init != "closed_form" or self.max_steps > 0
        if self.retain_budget is not None and self.eval_strategy == "no" and steps:
            raise AlignmentError(
                f"retain_budget={self.retain_budget:g} is compared with eval_kl, which is never measured with "
                'eval_strategy="no"; set eval_strategy="steps" and eval_steps.'
            )

        if self.retain_budget is not None and self.kl_weight == 0:
            raise AlignmentError(
                f"retain_budget={self.retain_budget:g} is compared with eval_kl, which is never measured with "
                "kl_weight=0; set a small kl_weight."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the Hub's token, which a pickle of the settings is not to hold."""
        return self.__dict__ | {"hub_token": None}

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part of the loss."""
        return {part: getattr(self, f"{part}_weight") for part in PARTS}

    def _check_solve(self) -> None:
        _one_of("init", self.init, INITS)
        _whole("solve_sweeps", self.solve_sweeps, 1)
        if self.solve_lam is not None and not 0 < self.solve_lam < float("inf"):
            raise AlignmentError(f"solve_lam={self.solve_lam!r}: expected a finite number > 0, or None.")
        if self.solve_gamma is not None and not 0 <= self.solve_gamma <= 1:
            raise AlignmentError(f"solve_gamma={self.solve_gamma!r}: expected a number from 0 to 1, or None.")
        if self.solve_layers is not None:
            for layer in self.solve_layers:
                _whole("solve_layers", layer, 0)
            if not self.solve_layers or len(set(self.solve_layers)) < len(self.solve_layers):
                raise AlignmentError(f"solve_layers={self.solve_layers!r}: expected layers, each once. Name some.")
        if isinstance(self.short_prompts, str):
            raise AlignmentError("short_prompts: expected a list of texts, got one text. Pass a list.")

    def _check_repulsion(self) -> None:
        if self.away != "repel" or self.away_weight == 0:
            return
        if self.toward not in _REPELLABLE:
            raise AlignmentError(
                f'away="repel" grows without bound and toward="{self.toward}" does not; use toward="centroid" or '
                '"paired", or away="hinge".'
            )
        if self.away_weight >= self.toward_weight:
            raise AlignmentError(
                f'away="repel" with lambda = away_weight / toward_weight = {self.away_weight:g} / '
                f"{self.toward_weight:g} >= 1 has no minimum: targets would be driven away for ever. Take a smaller "
                'away_weight, or away="hinge".'
            )


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise AlignmentError(f"{name}={value!r}; expected one of {', '.join(known)}.")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AlignmentError(f"{name}={value!r}; expected a whole number >= {least}.")
