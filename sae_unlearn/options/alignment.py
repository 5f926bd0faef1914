"""Options of an alignment: those that `SAEAlignmentConfig` adds to `TrainingArguments`."""

from dataclasses import dataclass
from typing import Any, Literal

from sae_unlearn.errors import AlignmentError
from sae_unlearn.options.field import check_options, documented, option


_ALIGN, _LOSS, _SOLVE, _ROWS, _START = "alignment", "loss", "closed form", "entities and rows", "start"


@documented
@dataclass(kw_only=True)
class AlignmentOptions:
    """Options of an alignment that `TrainingArguments` does not have."""

    layer: int | None = option(
        None, "0-based decoder layer whose output is aligned", group=_ALIGN, shown="the layer of the SAE", low=0
    )
    preset: Literal["default", "centroid"] = option(
        "default",
        "parts of the loss; default: paired and hinge; centroid: centroid and repel, after the abstract of arXiv "
        "2509.15631, whose equations were not available",
        group=_ALIGN,
    )
    init: Literal["zero", "closed_form"] = option(
        "closed_form",
        "start of the LoRA; closed_form: it is solved for with forward passes only, and max_steps steps of training "
        "follow; zero: it is trained from zero",
        group=_ALIGN,
    )
    min_separation: float = option(
        0.8, "AUC on held-out entities below which training is refused; 0 never refuses", group=_ALIGN, low=0, high=1
    )
    chat_template: bool = option(False, "apply the tokenizer's chat template to prompts", group=_ALIGN)
    retain_budget: float | None = option(
        None,
        "largest KL on held-out retain rows, in nats per token; the closed form stays within it, and training stops "
        "above it",
        group=_ALIGN,
        shown="0.04; none with zero",
        above=0,
    )
    covariance_cache: str | None = option(
        None,
        "folder for the second moments of the rows that should stay: 4 d_ffn^2 bytes for each layer, model and retain "
        "set",
        group=_ALIGN,
        shown="kept in memory",
    )

    toward: Literal["paired", "centroid", "cosine", "mmd"] | None = option(
        None,
        "distance of the targets to unknown entities",
        group=_LOSS,
        shown="the preset's",
        command_line=False,
    )
    away: Literal["hinge", "triplet", "repel", "none"] | None = option(
        None,
        "part of the loss that keeps targets from looking known",
        group=_LOSS,
        shown="the preset's",
        command_line=False,
    )
    toward_weight: float = option(1.0, "weight of toward", group=_LOSS, command_line=False, low=0)
    away_weight: float = option(
        0.5,
        "weight of away; with away='repel' it must be below toward_weight, since otherwise the loss has no minimum",
        group=_LOSS,
        command_line=False,
        low=0,
    )
    kl_weight: float = option(
        1.0,
        "weight of KL(base || tuned) on retain rows, in nats per token; 0 skips these rows",
        group=_LOSS,
        command_line=False,
        low=0,
    )
    mse_weight: float = option(
        0.5,
        "weight of the squared change of hidden states of known neighbors and unknown entities; 0 skips them",
        group=_LOSS,
        command_line=False,
        low=0,
    )

    solve_layers: list[int] | None = option(
        None,
        "0-based layers that the closed form changes",
        group=_SOLVE,
        shown="the aligned layer and the four below it",
        command_line=False,
        low=0,
    )
    solve_sweeps: int = option(2, "sweeps of the closed form over its layers", group=_SOLVE, command_line=False, low=1)
    solve_lam: float | None = option(
        None,
        "weight of the rows that should stay",
        group=_SOLVE,
        shown="the smallest within the budget",
        command_line=False,
        above=0,
    )
    solve_gamma: float | None = option(
        0.15,
        "overshoot, the share of the way by which goals lie beyond the unknown entities; None: that of the last sweep "
        "is chosen from the remainder of earlier sweeps, at most 0.3",
        group=_SOLVE,
        command_line=False,
        low=0,
        high=1,
    )

    question_forms: bool = option(
        True,
        "also move targets in the questions about their attributes, which contain no answers",
        group=_ROWS,
        shown="yes",
        command_line=False,
    )
    short_prompts: list[str] | None = option(
        None,
        "short prompts of other relations on which predictions should stay; those that name a target are left out",
        group=_ROWS,
        shown="the package's own, in English",
        command_line=False,
    )
    templates: dict[str, Any] | None = option(
        None,
        "prompts per entity type, each with {entity}",
        group=_ROWS,
        shown="the package's",
        command_line=False,
    )
    held_out_templates: dict[str, Any] | None = option(
        None, "such prompts for evaluation only", group=_ROWS, shown="the package's", command_line=False
    )
    questions: dict[str, Any] | None = option(
        None,
        "prompts per entity type and attribute, asked about known neighbors in retain rows",
        group=_ROWS,
        shown="the package's",
        command_line=False,
    )
    pairs_per_target: int = option(
        1,
        "unknown entities that a target is drawn to, the same throughout training; with one, the targets come to "
        "spread as unknown entities do; with many, each is drawn to their middle",
        group=_ROWS,
        command_line=False,
        low=1,
    )
    matched_unknown: int = option(
        16,
        "unknown entities of a target's type, nearest in name length, from which these are drawn",
        group=_ROWS,
        command_line=False,
        low=1,
    )
    draws_per_prompt: int = option(
        8,
        "items for each target in each template in an epoch, each with other rows that should stay",
        group=_ROWS,
        command_line=False,
        low=1,
    )
    retain_max_length: int = option(64, "tokens of a retain row", group=_ROWS, command_line=False, low=1)
    retain_positions: int | None = option(
        8,
        "tokens of a retain row at which predictions are compared: its last one and random others; None: all. The "
        "output head runs at no other token",
        group=_ROWS,
        command_line=False,
        low=1,
    )

    num_known_latents: int = option(
        32,
        "latents of known entities in the loss; without an SAE, hidden dimensions",
        group=_START,
        command_line=False,
        low=0,
    )
    num_unknown_latents: int = option(
        32, "latents of unknown entities in the loss", group=_START, command_line=False, low=0
    )
    max_generic_frequency: float = option(
        0.02,
        "latents that fire on a larger share of ordinary tokens, those of the retain text, are left out",
        group=_START,
        command_line=False,
        low=0,
        high=1,
    )
    max_reference_entities: int = option(
        256, "known, and unknown, entities whose states are kept as references", group=_START, command_line=False, low=8
    )
    held_out_fraction: float = option(
        0.3,
        "share of them kept for the separation report and for evaluation",
        group=_START,
        command_line=False,
        above=0,
        below=1,
    )
    reference_batch_size: int = option(
        32, "rows per forward pass of the base model at the start", group=_START, command_line=False, low=1
    )
    license: str | None = option(
        None,
        "license of the adapter as the Hub names licenses, such as gemma, for its card",
        group="card",
        command_line=False,
    )

    def __post_init__(self) -> None:
        check_options(self, AlignmentError)
