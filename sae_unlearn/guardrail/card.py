"""The card of a guardrail, `README.md` in its folder."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.model import MODEL_TAGS
from sae_unlearn.guardrail.plain_text import as_plain_text


TEMPLATE = Path(__file__).parent / "card_template.md"


def write_card(folder: str | os.PathLike[str], config: SAEGuardrailConfig, model: nn.Module) -> None:
    """Write the card of the guardrail in `folder` from the template; nothing but its config goes into it."""
    name = config.base_model_name_or_path or getattr(model, "name_or_path", "") or None
    data = ModelCardData(
        base_model=name if name and not os.path.isabs(name) else None,
        library_name="peft",
        tags=sorted(MODEL_TAGS),
        pipeline_tag="text-generation",
    )
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in _fields(config, name).items():
        text = text.replace("{{ " + key + " }}", value)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(folder) / "README.md")


def _fields(config: SAEGuardrailConfig, name: str | None) -> dict[str, str]:
    source = config.sae_source or {}
    calibration = config.calibration or {}
    return {
        "base_model": f"`{as_plain_text(name)}`" if name else "its base model",
        "layer": str(config.layer),
        "num_features": str(config.num_features),
        "feature_ids": ", ".join(map(str, config.feature_ids or [])) or "not recorded",
        "sae": _sae(source),
        "gate": _gate(config),
        "dose": _dose(config, calibration),
        "calibration": _table(calibration),
        "warnings": "\n".join(f"- {as_plain_text(w)}" for w in _list(calibration.get("warnings")))
        or "None from the calibration.",
    }


def _sae(source: dict[str, Any]) -> str:
    shown = [
        f"{key} `{as_plain_text(source[key])}`"
        for key in ("id", "revision", "subfolder", "architecture", "sha256")
        if source.get(key)
    ]
    return ", ".join(shown) or "not recorded"


def _gate(config: SAEGuardrailConfig) -> str:
    scope = {
        "sequence": "judged over all tokens of a sequence so far, the current forward pass included",
        "prefix": "judged token by token",
    }[config.gate_scope]
    stays = " and stays fired" if config.sticky else ""
    return f"fires{stays} when the statistic `{config.statistic}` exceeds {config.threshold}, {scope}"


def _dose(config: SAEGuardrailConfig, calibration: dict[str, Any]) -> str:
    size = _shown(calibration.get("edit_to_residual") or None, ".3g")
    measured = f"; the edit's typical norm is {size} times the median residual norm" if size != "-" else ""
    if config.clamp_unit == "absolute":
        return f"features are set to {config.clamp_value}{measured}"
    unit = {"feature": "times their mean active value", "residual": "residual norms"}[config.clamp_unit]
    return f"features are set to minus {config.clamp_scale} {unit}{measured}"


def _table(calibration: dict[str, Any]) -> str:
    if not isinstance(calibration.get("fire_rate_forget"), dict):
        return "The features and the threshold were given by hand, and nothing was measured."
    lines = ["| measured on rows held out from fitting | rate | 95 % interval | n |", "|---|---|---|---|"]
    for title, key in (("fires on forget text", "fire_rate_forget"), ("fires on retain text", "fire_rate_retain")):
        found = calibration.get(key)
        if isinstance(found, dict):
            rate, low, high = (_shown(found.get(name), ".1%") for name in ("rate", "low", "high"))
            lines.append(f"| {title} | {rate} | {low} to {high} | {_shown(found.get('n'), 'd')} |")
    auroc = _shown(calibration.get("auroc"), ".3f")
    if auroc != "-":
        lines.append(f"| the statistic divides forget from retain (AUROC) | {auroc} | | |")
    return "\n".join(lines)


def _shown(value: Any, form: str) -> str:
    """A number as `form` writes it, "-" for anything else: the config may have been written by anybody."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:{form}}" if whole or (isinstance(value, float) and form != "d") else "-"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
