"""The card of an alignment: `README.md` in its folder."""

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
from sae_unlearn.cards.provenance import CardBase, license_lines, source_line


TEMPLATE = Path(__file__).parent / "card_template.md"
TAGS = ["alignment", "lora", "sae_unlearn", "sparse-autoencoder", "unlearning"]
REPORTS = ("evaluation", "audit")
_METRICS = {
    "eval_known_auc": "AUC of targets against held-out unknown entities (0.5: indistinguishable)",
    "eval_variance_ratio": "variance of targets over that of unknown entities (below 0.5: collapsed)",
    "eval_toward": "distance of targets to unknown entities",
    "eval_away": "part of the targets that still looks known",
    "eval_mse": "squared change of other entities' hidden states, in standard deviations",
    "eval_kl": "KL(base, tuned) on held-out retain rows, nats per token",
}


@dataclass(frozen=True)
class AlignmentCard:
    """Content of a card that is not in the setting or the training arguments.

    Attributes:
        base (CardBase): The base model.
        sae_source (mapping, *optional*): Source of the SAE without local paths. None if no SAE was used.
        repo_id (str, *optional*): Repository of the card.
        license (str, *optional*): License of the adapter, as the Hub names licenses, for the metadata.
        licenses (mapping, *optional*, defaults to {}): Licenses of the base model and the SAE, by Hub id.
        reports (mapping, *optional*, defaults to {}): "evaluation" and "audit", to show and to save with the card.
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
    """Write the card. It shows the picture if the folder has one.

    Args:
        folder (str or PathLike): Folder of the adapter.
        card (AlignmentCard): Base model, licenses and reports.
        fields (mapping): Template fields of the setting and the training, see `card_fields`.
        metrics (mapping): Metrics of the last evaluation by name; may be empty.
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
        "licenses": license_lines(card.base, card.sae_source, card.licenses),
        "metrics": _table(metrics),
        "picture": picture_line(folder, PICTURE, "Known, unknown and target entities, before and after"),
        "evaluation": f"## What was measured\n\n{parts['evaluation']}" if parts["evaluation"] else "",
        "audit": parts["audit"] or "No audit was saved with this adapter.",
    }
    write_model_card(folder, TEMPLATE, data, shown)


def card_fields(setting: AlignmentSetting, args: SAEAlignmentConfig, steps: int) -> dict[str, str]:
    """Return the template fields of the setting and the training, without the targets' names.

    Args:
        setting (AlignmentSetting): The resolved setting.
        args (SAEAlignmentConfig): The training arguments.
        steps (int): Optimizer steps taken.
    """
    plan = setting.plan
    num_targets = len(plan.targets)
    names = {"toward": args.toward, "away": args.away, "kl": "KL to the base", "mse": "change of hidden states"}
    return {
        "num_targets": f"{num_targets} entities" if num_targets > 1 else "1 entity",
        "types": ", ".join(f"`{kind}`" for kind in plan.groups.types),
        "layer": str(setting.layer),
        "loss": _how(args, steps, ", ".join(f"{weight:g} x {names[part]}" for part, weight in args.weights.items())),
        "references": f"{len(plan.known)} known and {len(plan.unknown)} unknown entities",
        "held_out": str(len(plan.known) + len(plan.unknown) - len(plan.fit_known) - len(plan.fit_unknown)),
        "separation": f"{setting.separation.both:.3f}",
        "steps": str(steps),
        "seed": str(args.seed),
    }


def _how(args: SAEAlignmentConfig, steps: int, loss: str) -> str:
    """Return how the adapter was made: in closed form, trained, or both, with the loss."""
    if args.init != "closed_form":
        return f"Loss: {loss}"
    solved = "Solved for in closed form: least squares on the states at the targets' names, without training"
    return f"{solved}, and then trained with {loss}" if steps else solved


def _table(metrics: Mapping[str, float]) -> str:
    rows = [(title, metrics[key]) for key, title in _METRICS.items() if math.isfinite(metrics.get(key, math.nan))]
    if not rows:
        return "Nothing was measured: the adapter was saved without an evaluation."
    lines = ["| on targets, in templates that were not trained on | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {title} | {value:.4g} |" for title, value in rows)])
