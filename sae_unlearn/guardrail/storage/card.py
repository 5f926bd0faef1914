"""The card of a guardrail, `README.md` in its folder."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftConfig
from torch import nn

from sae_unlearn.cards.card import (
    SavedReport,
    adapter_metadata,
    as_plain_text,
    licences_on_the_hub,
    picture_line,
    report_section,
    write_model_card,
)
from sae_unlearn.cards.provenance import CardBase, card_base, licence_lines, source_line
from sae_unlearn.checks import real, shown
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.layout import PICTURE
from sae_unlearn.guardrail.peft_type import MODEL_TAGS
from sae_unlearn.guardrail.storage.calibration_plot import draw_calibration
from sae_unlearn.guardrail.summary import curve_rows, fire_rows, fit_warnings, statistic_in_words, tokens_in_words


TEMPLATE = Path(__file__).parent / "card_template.md"
_STATISTICS = ("statistic_forget", "statistic_retain")
_COUNTS = ("documents", "tokens", "selection_rows", "threshold_rows", "report_rows")


@dataclass(frozen=True)
class CardDetails:
    """What a card says beyond the guardrail's config.

    Attributes:
        repo_id: the repository that the card is for.
        license: the adapter's own, as the Hub names licences, for the metadata.
        licenses: of the base model and of the SAE, by their Hub ids.
        evaluation, audit: reports to be shown, and saved beside the card.
        folder: the name of the folder that the card is for, where it is for no repository.
        subfolder: where in the repository the adapter lies, "" for the repository itself; None for the folder that it
            is saved into.
    """

    repo_id: str | None = None
    license: str | None = None
    licenses: Mapping[str, str] = field(default_factory=dict)
    evaluation: SavedReport | None = None
    audit: SavedReport | None = None
    folder: str | None = None
    subfolder: str | None = None


def write_card(
    folder: str | os.PathLike[str],
    config: SAEGuardrailConfig,
    model: nn.Module,
    details: CardDetails | None = None,
) -> None:
    """Write the card of the guardrail in `folder` from the template, with its picture. No text that it was fitted on
    goes into it.

    Without matplotlib there is no picture, and the card does without it.
    """
    details = details or CardDetails()
    base = base_of(config, model)
    tags = sorted({*MODEL_TAGS, "sae_unlearn", "sparse-autoencoder"})
    data = adapter_metadata(base.hub_id, details.license, tags)
    _draw(config, Path(folder) / PICTURE)
    write_model_card(folder, TEMPLATE, data, _fields(config, base, Path(folder), details))


def base_of(config: PeftConfig, model: nn.Module) -> CardBase:
    """What the card says of the base model, by what it calls itself: a Hub id or a path."""
    return card_base(config.base_model_name_or_path or getattr(model, "name_or_path", ""))


def hub_licences(api: HfApi, configs: Iterable[SAEGuardrailConfig], model: nn.Module) -> dict[str, str]:
    """The licences that the base model and the SAEs of guardrails state on the Hub, for `CardDetails.licenses`."""
    sources: set[str | None] = set()
    for config in configs:
        sae = config.sae_source or {}
        sources |= {base_of(config, model).hub_id, None if sae.get("local") else sae.get("id")}
    return licences_on_the_hub(api, sources)


def attached(details: CardDetails) -> str:
    """What is attached, to the end of the line: a repository has commits to be pinned, a folder has none."""
    inside = f', subfolder="{details.subfolder}"' if details.subfolder else ""
    if details.folder and not details.repo_id:
        return f'"{details.folder}"{inside})  # the folder of this card'
    return f'"{details.repo_id or "this repository"}"{inside}, revision="<commit>")'


def _fields(config: SAEGuardrailConfig, base: CardBase, folder: Path, details: CardDetails) -> dict[str, str]:
    source = config.sae_source or {}
    calibration = config.calibration or {}
    return {
        **base.fields(),
        "attached": attached(details),
        "layer": str(config.layer),
        "num_features": str(config.num_features),
        "feature_ids": ", ".join(map(str, config.feature_ids or [])) or "not recorded",
        "sae": source_line(source),
        "gate": _gate(config),
        "action": _action(config),
        "dose": _dose(config, calibration),
        "fit": _fit(calibration),
        "probe": "four rows that it was fitted on, as token ids" if calibration.get("probe") else "none",
        "calibration": _table(calibration),
        "picture": picture_line(folder, PICTURE, "The statistic of held-out rows, and the threshold"),
        "curve": _curve(calibration),
        "warnings": "\n".join(f"- {as_plain_text(text)}" for text in fit_warnings(calibration))
        or ("The calibration gave no warning." if calibration else ""),
        "evaluation": report_section(details.evaluation, folder, "evaluation"),
        "audit": report_section(details.audit, folder, "audit") or "None was saved with this guardrail.",
        "licences": licence_lines(base, source, details.licenses),
    }


def _gate(config: SAEGuardrailConfig) -> str:
    scope = {
        "sequence": "judged over all tokens of a sequence so far, the current forward pass included",
        "prefix": "judged token by token",
    }[config.gate_scope]
    stays = " and stays fired" if config.sticky else ""
    messages = ", and message by message of a conversation" if config.message_boundary_ids else ""
    tokens = "".join(f", {words}" for words in tokens_in_words(config))
    tokens += "," if tokens else ""
    return f"fires{stays} when the statistic `{config.statistic}`{tokens} exceeds {config.threshold}, {scope}{messages}"


def _action(config: SAEGuardrailConfig) -> str:
    return {
        "clamp": "features of a sequence that fired are clamped",
        "record": "none; what fired is only recorded, and the text passes as it is",
        "refuse": f"a sequence that fired is answered with {_message(config)}; before the head, and at positions that "
        "nobody generates at, its features are clamped",
    }[config.action]


def _message(config: SAEGuardrailConfig) -> str:
    """The message of a refusal: its text only where a tokenizer has shown that its tokens say that."""
    tokens = f"the tokens {', '.join(map(str, config.refusal_ids or []))}"
    if config.refusal is None:
        return tokens
    text = f'"{as_plain_text(config.refusal)}"'
    return text if config.refusal_compared else f"{tokens}, which its config calls {text} (not compared)"


def _dose(config: SAEGuardrailConfig, calibration: dict[str, Any]) -> str:
    size = real(calibration.get("edit_to_residual"))
    measured = f"; the edit's typical norm is {size:.3g} times the median residual norm" if size else ""
    if config.clamp_value is not None:
        return f"features are set to {config.clamp_value}{measured}"
    if config.clamp_unit == "residual":
        return f"features are set so that the edit has {config.clamp_scale} of the residual norm{measured}"
    return f"features are set to minus {config.clamp_scale} times their mean active value{measured}"


def _fit(calibration: dict[str, Any]) -> str:
    parts = []
    for role, counts in _mapping(calibration.get("corpora")).items():
        n = {name: shown(_mapping(counts).get(name), ".0f") for name in _COUNTS}
        parts.append(
            f"{n['documents']} documents of {as_plain_text(role)} text, {n['tokens']} tokens ({n['selection_rows']} "
            f"rows chose the features, {n['threshold_rows']} the threshold, {n['report_rows']} were held out)"
        )
    if not parts:
        return "features and threshold were given by hand"
    settings = [
        f"{key} {as_plain_text(calibration[key])}"
        for key in (
            "importance",
            "ratio_percentile",
            "threshold_percentile",
            "threshold_margin",
            "max_length",
            "chat_template",
        )
        if calibration.get(key) is not None
    ]
    return "; ".join([*parts, ", ".join(settings)])


def _table(calibration: dict[str, Any]) -> str:
    rows = fire_rows(calibration)
    if not rows:
        return "The features and the threshold were given by hand, and nothing was measured."
    lines = ["| measured on rows held out from fitting | rate | 95 % interval | n |", "|---|---|---|---|"]
    lines += [f"| fires on {role} text | {' | '.join(numbers)} |" for role, *numbers in rows]
    auroc = real(calibration.get("auroc"))
    if auroc is not None:
        lines.append(f"| the statistic divides forget from retain (AUROC) | {auroc:.3f} | | |")
    return "\n".join(lines)


def _curve(calibration: dict[str, Any]) -> str:
    rows = curve_rows(calibration)
    if not rows:
        return ""
    lines = [
        "| percentile of retain rows | threshold | fires on forget text | fires on retain text |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(["What another threshold would have done, on the same held-out rows:", "", *lines])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _draw(config: SAEGuardrailConfig, path: Path) -> None:
    calibration = config.calibration or {}
    if any(calibration.get(name) for name in _STATISTICS):
        try:
            draw_calibration(calibration, path, statistic_in_words(config))
        except (ImportError, GuardrailError):
            return
