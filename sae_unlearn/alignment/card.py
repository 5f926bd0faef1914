"""The card of an alignment, `README.md` in its folder."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.picture import PICTURE
from sae_unlearn.alignment.setting import AlignmentSetting
from sae_unlearn.model_card import SavedReport, picture_line, public_name, report_section, write_model_card


TEMPLATE = Path(__file__).parent / "card_template.md"
TAGS = ["alignment", "lora", "sae_unlearn", "sparse-autoencoder", "unlearning"]
REPORTS = ("evaluation", "audit")
_SOURCE = ("id", "revision", "subfolder", "architecture", "sha256")
_METRICS = {
    "eval_known_auc": "a target looks more known than a held-out unknown entity (AUC; 0.5 is indistinguishable)",
    "eval_variance_ratio": "variance of targets over that of unknown entities (below 0.5: collapsed)",
    "eval_toward": "distance of targets to unknown entities",
    "eval_away": "what still looks known",
    "eval_mse": "squared change of other entities' hidden states, in standard deviations",
    "eval_kl": "KL(base, tuned) on held-out retain rows, nats per token",
}


def write_card(
    folder: str | os.PathLike[str],
    base_model: str | None,
    fields: Mapping[str, str],
    metrics: Mapping[str, float],
    reports: Mapping[str, SavedReport] | None = None,
) -> None:
    """Write the card from the template. The picture is shown where it lies in the folder.

    Args:
        base_model: its name; a local path is left out of the metadata.
        fields: what the template asks for, but for the base model and the metrics.
        metrics: of the last evaluation; may be empty.
        reports: "evaluation" and "audit", to be shown and saved beside the card.
    """
    public = public_name(base_model)
    data = ModelCardData(
        base_model=public,
        base_model_relation="adapter" if public else None,
        library_name="peft",
        tags=TAGS,
        pipeline_tag="text-generation",
    )
    parts = {name: report_section((reports or {}).get(name), folder, name) for name in REPORTS}
    shown = {
        **fields,
        "base_model": f"`{public}`" if public else "its base model",
        "base_id": public or "the base model",
        "metrics": _table(metrics),
        "picture": picture_line(folder, PICTURE, "Known, unknown and target entities, before and after"),
        "evaluation": parts["evaluation"],
        "audit": parts["audit"] or "None was saved with this adapter.",
    }
    write_model_card(folder, TEMPLATE, data, shown)


def card_fields(
    setting: AlignmentSetting,
    args: SAEAlignmentConfig,
    sae_source: Mapping[str, Any] | None,
    steps: int,
) -> dict[str, str]:
    """What the template asks for. The names of the targets are not in it.

    Args:
        sae_source: None if no SAE was used. A local path in it is left out: it says nothing to others.
        steps: optimiser steps done.
    """
    plan = setting.plan
    num_targets = len(plan.targets)
    names = {"toward": args.toward, "away": args.away, "kl": "KL to the base", "mse": "change of hidden states"}
    shown = {key: (sae_source or {}).get(key) for key in _SOURCE}
    source = [f"{key} `{value}`" for key, value in shown.items() if value and not os.path.isabs(str(value))]
    return {
        "num_targets": f"{num_targets} entities" if num_targets > 1 else "1 entity",
        "types": ", ".join(f"`{kind}`" for kind in plan.groups.types),
        "layer": str(setting.layer),
        "space": "in its hidden states" if sae_source is None else "in the latent space of a sparse autoencoder",
        "loss": ", ".join(f"{weight:g} x {names[part]}" for part, weight in args.weights.items()),
        "references": f"{len(plan.known)} known and {len(plan.unknown)} unknown entities",
        "held_out": str(len(plan.known) + len(plan.unknown) - len(plan.fit_known) - len(plan.fit_unknown)),
        "sae": "none" if sae_source is None else ", ".join(source) or "not recorded",
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
