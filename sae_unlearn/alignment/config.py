"""Training arguments of an alignment, in addition to those of `Trainer`."""

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from sae_unlearn.alignment.loss import AWAY, PARTS, TOWARD
from sae_unlearn.alignment.settings_checks import check_followed, check_without_steps
from sae_unlearn.checks import check_bool, check_choice, check_integer, check_number
from sae_unlearn.errors import AlignmentError
from sae_unlearn.options.train import TrainOptions


PRESETS = {
    "default": {"toward": "paired", "away": "hinge"},
    "centroid": {"toward": "centroid", "away": "repel"},
}
INITS = ("closed_form", "zero")
# Distances that can balance repulsion. The others are bounded, and repulsion is not.
_REPELLABLE = ("paired", "centroid")
_OPTIONAL = ("retain_budget", "solve_lam", "solve_gamma")
_NUMBERS = (
    *("toward_weight", "away_weight", "kl_weight", "mse_weight"),
    *("max_generic_frequency", "min_separation", "held_out_fraction"),
    *_OPTIONAL,
)
_COLLECTIONS: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("solve_layers", (list, tuple), "a list of layers"),
    ("templates", dict, "prompts by entity type"),
    ("held_out_templates", dict, "prompts by entity type"),
    ("questions", dict, "prompts by entity type and attribute"),
    ("covariance_cache", (str, os.PathLike), "a folder"),
    ("license", str, "the name of a license"),
)


@dataclass
class SAEAlignmentConfig(TrainingArguments):
    """`TrainingArguments` with the alignment's own settings, which are checked at construction.

        loss = toward_weight * toward + away_weight * away + kl_weight * kl + mse_weight * mse

    Other fields mean what they do in `TrainingArguments`. Those that an alignment cannot follow are refused by name
    (`sae_unlearn.alignment.settings_checks`). Defaults that differ: a learning rate of 5e-4, batches of 10 targets,
    logs every 10 steps. `dataloader_drop_last` drops rows of training only: evaluation reads all.

    Args:
        preset (str, *optional*, defaults to "default"): "default" (paired, hinge), or "centroid" (centroid, repel)
            after the abstract of arXiv 2509.15631, whose equations were not available.
        toward (str, *optional*): "paired", "centroid", "cosine" or "mmd"; None takes the preset's. See
            `sae_unlearn.alignment.loss`.
        away (str, *optional*): "hinge", "triplet", "repel" or "none"; None takes the preset's. See
            `sae_unlearn.alignment.loss`.
        toward_weight (float, *optional*, defaults to 1.0): Weight of `toward`.
        away_weight (float, *optional*, defaults to 0.5): Weight of `away`. With `away="repel"`, `away_weight /
            toward_weight` is lambda and must be below 1, since otherwise the loss has no minimum.
        kl_weight (float, *optional*, defaults to 1.0): Weight of KL(base || tuned) on retain rows, in nats per token. 0
            skips these rows.
        mse_weight (float, *optional*, defaults to 0.5): Weight of the squared change of hidden states of known
            neighbors and unknown entities. 0 skips them.
        init (str, *optional*, defaults to "closed_form"): "closed_form" solves for the LoRA at the start of `train`,
            with forward passes only (see `solve_alignment`), within `retain_budget`, which is 0.04 if None. `max_steps`
            steps of training follow, by default none; epochs, evaluations and checkpoints are then refused, since no
            step reaches them. Without a `peft_config` the LoRA has rank 16 and covers the MLPs' output projections of
            `solve_layers`. "zero" starts from a LoRA of zero and trains it.
        solve_layers (list of int, *optional*): 0-based layers that the closed form changes. None takes the aligned
            layer and the four below it.
        solve_sweeps (int, *optional*, defaults to 2): Sweeps over these layers.
        solve_lam (float, *optional*): Weight of the rows that should stay. None searches for the smallest within the
            budget.
        solve_gamma (float, *optional*, defaults to 0.15): Overshoot, the share of the way by which goals lie beyond the
            unknown entities. None chooses that of the last sweep from the remainder of earlier sweeps, at most 0.3.
        covariance_cache (str, *optional*): Folder for the second moments of the rows that should stay, one file of `4 *
            d_ffn^2` bytes per layer for each model and retain set. None keeps them in memory only.
        question_forms (bool, *optional*, defaults to True): Also move targets in the questions about their attributes,
            which contain no answers.
        short_prompts (list of str, *optional*): Short prompts of other relations on which predictions should stay. None
            takes the package's own, in English. Prompts that name a target are left out.
        layer (int, *optional*): 0-based decoder layer whose output is aligned. None takes the SAE's.
        num_known_latents, num_unknown_latents (int, *optional*, defaults to 32): Numbers of latents in the loss.
            Without an SAE, the first is the number of hidden dimensions that count as known.
        max_generic_frequency (float, *optional*, defaults to 0.02): Latents that fire on a larger share of ordinary
            tokens (of the retain text) are left out.
        pairs_per_target (int, *optional*, defaults to 1): Unknown entities that a target is drawn to, the same
            throughout training. With one, the targets come to spread as unknown entities do; with many, each is drawn
            to their middle.
        matched_unknown (int, *optional*, defaults to 16): Unknown entities of a target's type, nearest in name length,
            from which these are drawn.
        draws_per_prompt (int, *optional*, defaults to 8): Items for each target in each template in an epoch, each with
            other rows that should stay.
        templates, held_out_templates (dict, *optional*): Prompts per entity type, each with "{entity}". None takes the
            package's. Held-out templates are used in evaluation only.
        questions (dict, *optional*): Prompts per entity type and attribute, asked about known neighbors in retain rows.
            None takes the package's.
        max_reference_entities (int, *optional*, defaults to 256): Known, and unknown, entities whose states are kept as
            references.
        held_out_fraction (float, *optional*, defaults to 0.3): Share of them kept for the separation report and for
            evaluation.
        min_separation (float, *optional*, defaults to 0.8): AUC on held-out entities below which training is refused. 0
            never refuses.
        retain_max_length (int, *optional*, defaults to 64): Tokens of a retain row.
        retain_positions (int, *optional*, defaults to 8): Tokens of a retain row at which predictions are compared: its
            last one and random others. None compares all. The output head, most of the work with a large vocabulary,
            runs at no other token.
        retain_budget (float, *optional*): Largest damage of the closed form, in nats per token; None is 0.04. Steps of
            training stop if `eval_kl` exceeds it (needs `eval_strategy`, and `kl_weight` > 0), and never with None.
        chat_template (bool, *optional*, defaults to False): Put prompts into the tokenizer's chat template.
        reference_batch_size (int, *optional*, defaults to 32): Rows per forward pass of the base model at the start.
        license (str, *optional*): License of the adapter as the Hub names licenses ("gemma"), for its card.

    Raises:
        AlignmentError: If a value is out of range. The message names it.
    """

    learning_rate: float = field(default=TrainOptions.learning_rate, metadata={"help": "The initial learning rate."})
    per_device_train_batch_size: int = field(
        default=TrainOptions.batch_size, metadata={"help": "Targets in a batch, per device."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The rows hold only what the loss needs."})

    preset: str = field(default=TrainOptions.preset, metadata={"help": "default or centroid"})
    toward: str | None = field(default=None, metadata={"help": "paired, centroid, cosine or mmd"})
    away: str | None = field(default=None, metadata={"help": "hinge, triplet, repel or none"})
    toward_weight: float = field(default=1.0, metadata={"help": "Weight of the distance to unknown entities."})
    away_weight: float = field(
        default=0.5, metadata={"help": "Weight of the part that keeps targets from looking known."}
    )
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
    init: str = field(default=TrainOptions.init, metadata={"help": "closed_form or zero"})
    solve_layers: list[int] | None = field(default=None, metadata={"help": "Layers that the closed form changes."})
    solve_sweeps: int = field(default=2, metadata={"help": "Sweeps of the closed form over its layers."})
    solve_lam: float | None = field(
        default=None, metadata={"help": "Weight of the rows that should stay; searched for if None."}
    )
    solve_gamma: float | None = field(default=0.15, metadata={"help": "Overshoot beyond the unknown entities."})
    covariance_cache: str | None = field(default=None, metadata={"help": "Folder for second moments."})
    question_forms: bool = field(default=True, metadata={"help": "Move targets in forms of questions as well."})
    short_prompts: list[str] | None = field(
        default=None, metadata={"help": "Short prompts whose predictions should stay."}
    )
    chat_template: bool = field(default=False, metadata={"help": "Use the tokenizer's chat template."})
    reference_batch_size: int = field(default=32, metadata={"help": "Rows per pass of the base model at the start."})
    license: str | None = field(default=None, metadata={"help": "The adapter's own license, for its card."})

    def __post_init__(self) -> None:
        self._check_types()
        check_choice("preset", self.preset, PRESETS, AlignmentError)
        self.toward = PRESETS[self.preset]["toward"] if self.toward is None else self.toward
        self.away = PRESETS[self.preset]["away"] if self.away is None else self.away
        check_choice("toward", self.toward, TOWARD, AlignmentError)
        check_choice("away", self.away, AWAY, AlignmentError)
        for name in ("toward_weight", "away_weight", "kl_weight", "mse_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise AlignmentError(f"{name}={getattr(self, name)!r}: expected a finite number >= 0.")
        if self.toward_weight == 0 and (self.away_weight == 0 or self.away == "none"):
            raise AlignmentError(
                "toward_weight=0, away_weight=0: expected one above 0. Otherwise nothing moves the targets."
            )
        for name in (
            "pairs_per_target",
            "matched_unknown",
            "draws_per_prompt",
            "retain_max_length",
            "reference_batch_size",
        ):
            check_integer(name, getattr(self, name), 1, error=AlignmentError)
        for name in ("num_known_latents", "num_unknown_latents"):
            check_integer(name, getattr(self, name), 0, error=AlignmentError)
        check_integer("max_reference_entities", self.max_reference_entities, 8, error=AlignmentError)
        for name in ("max_generic_frequency", "min_separation"):
            if not 0 <= getattr(self, name) <= 1:
                raise AlignmentError(f"{name}={getattr(self, name)!r}: expected a number from 0 to 1.")
        if not 0 < self.held_out_fraction < 1:
            raise AlignmentError(f"held_out_fraction={self.held_out_fraction!r}: expected a number between 0 and 1.")
        if self.layer is not None:
            check_integer("layer", self.layer, 0, error=AlignmentError)
        if self.retain_positions is not None:
            check_integer("retain_positions", self.retain_positions, 1, error=AlignmentError)
        if self.retain_budget is not None and not self.retain_budget > 0:
            raise AlignmentError(f"retain_budget={self.retain_budget!r}: expected a number of nats > 0, or None.")
        self._check_solve()
        self._check_repulsion()
        check_followed(self)
        if self.solves_only:
            check_without_steps(self)
            self.num_train_epochs, self.max_steps = 0.0, -1
        super().__post_init__()
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

    def _check_types(self) -> None:
        """Raise unless numbers, switches and collections are of their type; their ranges are checked apart."""
        for name in _NUMBERS:
            if not (name in _OPTIONAL and getattr(self, name) is None):
                check_number(name, getattr(self, name), AlignmentError)
        for name in ("question_forms", "chat_template"):
            check_bool(name, getattr(self, name), AlignmentError)
        for name, kind, wanted in _COLLECTIONS:
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kind):
                raise AlignmentError(f"{name}={getattr(self, name)!r}: expected {wanted}, or None.")

    def _check_solve(self) -> None:
        check_choice("init", self.init, INITS, AlignmentError)
        check_integer("solve_sweeps", self.solve_sweeps, 1, error=AlignmentError)
        if self.solve_lam is not None and not 0 < self.solve_lam < float("inf"):
            raise AlignmentError(f"solve_lam={self.solve_lam!r}: expected a finite number > 0, or None.")
        if self.solve_gamma is not None and not 0 <= self.solve_gamma <= 1:
            raise AlignmentError(f"solve_gamma={self.solve_gamma!r}: expected a number from 0 to 1, or None.")
        if self.solve_layers is not None:
            for layer in self.solve_layers:
                check_integer("solve_layers", layer, 0, error=AlignmentError)
            if not self.solve_layers or len(set(self.solve_layers)) < len(self.solve_layers):
                raise AlignmentError(f"solve_layers={self.solve_layers!r}: expected layers, each once. Name some.")
        if isinstance(self.short_prompts, str):
            raise AlignmentError("short_prompts: expected a list of texts, got one text. Pass a list.")

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
