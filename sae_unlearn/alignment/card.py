"""The card of an alignment, `README.md` in its folder."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.plot import PICTURE
from sae_unlearn.alignment.reference import AlignmentSetting
from sae_unlearn.cards.card import SavedReport, adapter_metadata, picture_line, report_section, write_model_card
from sae_unlearn.cards.provenance import CardBase, licence_lines, source_line


TEMPLATE = Path(__file__).parent / "card_template.md"
TAGS = ["alignment", "lora", "sae_unlearn", "sparse-autoencoder", "unlearning"]
REPORTS = ("evaluation", "audit")
_METRICS = {
    "eval_known_auc": "a target looks more known than a held-out unknown entity (AUC; 0.5 is indistinguishable)",
    "eval_variance_ratio": "variance of targets over that of unknown entities (below 0.5: collapsed)",
    "eval_toward": "distance of targets to unknown entities",
    "eval_away": "what still looks known",
    "eval_mse": "squared change of other entities' hidden states, in standard deviations",
    "eval_kl": "KL(base, tuned) on held-out retain rows, nats per token",
}


@dataclass(frozen=True)
class AlignmentCard:
    """What the card says beyond the setting and the training.

    Attributes:
        base: the base model.
        sae_source: of the SAE, fit to be published; None if none was used.
        repo_id: the repository that the card is for.
        license: the adapter's own, as the Hub names licences, for the metadata.
        licenses: of the base model and of the SAE, by their Hub ids.
        reports: "evaluation" and "audit", to be shown and saved beside the card.
    """

    base: CardBase
    sae_source: Mapping[str, Any] | None = None
    repo_id: str | None = None
    license: str | None = None
    licenses: Mapping[str, str] = field(default_factory=dict)
    reports: Mapping[str, SavedReport] = field(default_factory=dict)


def write_card(
    folder: str | os.PathLike[str], card: AlignmentCard, fields: Mapping[str, str], metrics: Mapping[str, float]
) -> None:
    """Write the card from the template. The picture is shown where it lies in the folder.

    Args:
        fields: what the template asks for of the setting and the training.
        metrics: of the last evaluation; may be empty.
    """
    hub_id = card.base.hub_id
    data = adapter_metadata(hub_id, card.license, TAGS)
    parts = {name: report_section(card.reports.get(name), folder, name) for name in REPORTS}
    shown = {
        **fields,
        **card.base.fields(),
        "repo_id": card.repo_id or "this repository",
        "space": "in its hidden states" if card.sae_source is None else "in the latent space of a sparse autoencoder",
        "sae": "none" if card.sae_source is None else source_line(card.sae_source),
        "licences": licence_lines(card.base, card.sae_source, card.licenses),
        "metrics": _table(metrics),
        "picture": picture_line(folder, PICTURE, "Known, unknown and target entities, before and after"),
        "evaluation": parts["evaluation"],
        "audit": parts["audit"] or "None was saved with this adapter.",
    }
    write_model_card(folder, TEMPLATE, data, shown)


def card_fields(setting: AlignmentSetting, args: SAEAlignmentConfig, steps: int) -> dict[str, str]:
    """What the template asks for of the setting and of the training, after so many optimiser steps. The names of the
    targets are not in it."""
    plan = setting.plan
    num_targets = len(plan.targets)
    names = {"toward": args.toward, "away": args.away, "kl": "KL to the base", "mse": "change of hidden states"}
    return {
        "num_targets": f"{num_targets} entities" if num_targets > 1 else "1 entity",
        "types": ", ".join(f"`{kind}`" for kind in plan.groups.types),
        "layer": str(setting.layer),
        "loss": ", ".join(f"{weight:g} x {names[part]}" for part, weight in args.weights.items()),
        "references": f"{len(plan.known)} known and {len(plan.unknown)} unknown entities",
        "held_out": str(len(plan.known) + len(plan.unknown) - len(plan.fit_known) - len(plan.fit_unknown)),
        "separation": f"{setting.separation.both:.3f}",
        "steps": str(steps),
        "seed": str(args.seed),
    }


def _table(metrics: Mapping[str, float]) -> str:
    rows = [(title, metrics[key]) for key, title in _METRICS.items() if math.isfinite(metrics.get(key, math.nan))]
    if not rows:
        return "Nothing: the adapter was saved without an evaluation."
    lines = ["| on targets, in templates that training never used | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {title} | {value:.4g} |" for title, value in rows)])
