"""The card of a guardrail: `README.md` in its folder."""

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
    licenses_on_the_hub,
    picture_line,
    report_section,
    write_model_card,
)
from sae_unlearn.cards.provenance import CardBase, card_base, license_lines, source_line
from sae_unlearn.checks import real, shown
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.layout import PICTURE
from sae_unlearn.guardrail.peft_type import MODEL_TAGS
from sae_unlearn.guardrail.storage.calibration_plot import draw_calibration
from sae_unlearn.guardrail.summary import (
    curve_rows,
    fire_rows,
    fit_warnings,
    fit_words,
    recorded_dose,
    statistic_in_words,
    tokens_in_words,
)


TEMPLATE = Path(__file__).parent / "card_template.md"
_STATISTICS = ("statistic_forget", "statistic_retain")
EFFECTS = {
    "clamp": "features of a sparse autoencoder are clamped in the residual stream after layer {layer}",
    "record": "the firing is recorded, and the text is not changed",
    "refuse": "the text is answered with a fixed message",
}
_COUNTS = ("documents", "tokens", "selection_rows", "threshold_rows", "report_rows")


@dataclass(frozen=True)
class CardDetails:
    """Content of a card that is not in the guardrail's config.

    Attributes:
        repo_id (str, *optional*): Repository of the card.
        license (str, *optional*): License of the adapter, as the Hub names licenses, for the metadata.
        licenses (mapping, *optional*, defaults to {}): Licenses of the base model and the SAE, by Hub id.
        evaluation (SavedReport, *optional*): Report to show, and to save into `evaluation`.
        audit (SavedReport, *optional*): Report to show, and to save into `audit`.
        folder (str, *optional*): Name of the folder, for a card without a repository.
        subfolder (str, *optional*): Place of the adapter in the repository, "" for its root. None for the folder into
            which the adapter is saved.
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
    """Save the card of a guardrail and its picture.

    The card has no text that the guardrail was fitted on. Without matplotlib the card has no picture.

    Args:
        folder (str or PathLike): Folder of the guardrail.
        config (SAEGuardrailConfig): Config of the guardrail.
        model (nn.Module): The base model. Its `name_or_path` is used if the config has none.
        details (CardDetails, *optional*): Further content.
    """
    details = details or CardDetails()
    base = base_of(config, model)
    tags = sorted({*MODEL_TAGS, "sae_unlearn", "sparse-autoencoder"})
    data = adapter_metadata(base.hub_id, details.license, tags)
    _draw(config, Path(folder) / PICTURE)
    write_model_card(folder, TEMPLATE, data, _fields(config, base, Path(folder), details))


def base_of(config: PeftConfig, model: nn.Module) -> CardBase:
    """Return the card's description of the base model that the config or the model names."""
    return card_base(config.base_model_name_or_path or getattr(model, "name_or_path", ""))


def hub_licenses(api: HfApi, configs: Iterable[SAEGuardrailConfig], model: nn.Module) -> dict[str, str]:
    """Return the licenses of the base model and of the SAEs on the Hub, for `CardDetails.licenses`."""
    sources: set[str | None] = set()
    for config in configs:
        sae = config.sae_source or {}
        sources |= {base_of(config, model).hub_id, None if sae.get("local") else sae.get("id")}
    return licenses_on_the_hub(api, sources)


def attached(details: CardDetails) -> str:
    """Return the last arguments of the card's attaching call: the folder, or repository and commit."""
    inside = f', subfolder="{details.subfolder}"' if details.subfolder else ""
    if details.folder and not details.repo_id:
        return f'"{details.folder}"{inside})  # the folder of this card'
    return f'"{details.repo_id or "this repository"}"{inside}, revision="<commit>")'


def _fields(config: SAEGuardrailConfig, base: CardBase, folder: Path, details: CardDetails) -> dict[str, str]:
    source = config.sae_source or {}
    calibration = config.calibration or {}
    evaluation = report_section(details.evaluation, folder, "evaluation")
    return {
        **base.fields(),
        "attached": attached(details),
        "effect": EFFECTS[config.action].format(layer=config.layer),
        "layer": str(config.layer),
        "num_features": str(config.num_features),
        "feature_ids": ", ".join(map(str, config.feature_ids or ())),
        "sae": source_line(source),
        "gate": _gate(config),
        "action": _action(config),
        "dose": _dose(config, calibration),
        "fit": _fit(calibration),
        "probe": "four rows of the fit, as token ids" if calibration.get("probe") else "none",
        "calibration": "\n\n".join([_table(calibration), *_words(calibration)]),
        "picture": picture_line(folder, PICTURE, "The statistic of held-out rows, and the threshold"),
        "curve": _curve(calibration),
        "warnings": "\n".join(f"- {as_plain_text(text)}" for text in fit_warnings(calibration))
        or ("The calibration gave no warning." if calibration else ""),
        "evaluation": f"## What was measured\n\n{evaluation}" if evaluation else "",
        "audit": report_section(details.audit, folder, "audit") or "No audit was saved with this guardrail.",
        "licenses": license_lines(base, source, details.licenses),
    }


def _words(calibration: dict[str, Any]) -> list[str]:
    """Return the fit's measurements of its gate, as one paragraph."""
    found = [as_plain_text(text) for text in fit_words(calibration)]
    return [" ".join(found)] if found else []


def _gate(config: SAEGuardrailConfig) -> str:
    scope = {
        "sequence": "judged over all tokens of a text so far, the current forward pass included",
        "prefix": "judged token by token",
    }[config.gate_scope]
    stays = " and stays fired" if config.sticky else ""
    messages = ", and message by message of a conversation" if config.tokens.boundary_ids else ""
    messages = ", and paragraph by paragraph" if config.tokens.paragraph_ids else messages
    tokens = "".join(f", {words}" for words in tokens_in_words(config))
    tokens += "," if tokens else ""
    return f"fires{stays} when the statistic `{config.statistic}`{tokens} exceeds {config.threshold}, {scope}{messages}"


def _action(config: SAEGuardrailConfig) -> str:
    return {
        "clamp": "features of a text that fired are clamped",
        "record": "none; firings are recorded, and the text is not changed",
        "refuse": f"a text that fired is answered with {_message(config)}; its features are clamped where no token is "
        "generated",
    }[config.action]


def _message(config: SAEGuardrailConfig) -> str:
    """Return the message of a refusal, as text only if a tokenizer confirmed that the ids decode to it."""
    tokens = f"the tokens {', '.join(map(str, config.refusal_ids or []))}"
    if config.refusal is None:
        return tokens
    text = f'"{as_plain_text(config.refusal)}"'
    return text if config.refusal_compared else f"{tokens}, which the config calls {text} (not compared)"


def _dose(config: SAEGuardrailConfig, calibration: dict[str, Any]) -> str:
    size = real(calibration.get("edit_to_residual"))
    measured = f"; the edit's typical norm is {size:.3g} times the median residual norm" if size else ""
    if config.clamp_value is not None:
        return f"features are set to {config.clamp_value}{measured}"
    unit, scale = recorded_dose(config) or (None, None)
    if unit == "residual":
        return f"features are set so that the edit has {scale} of the residual norm{measured}"
    if unit == "feature":
        return f"features are set to minus {scale} times their mean active value{measured}"
    return f"features are set to values of their own{measured}"


def _fit(calibration: dict[str, Any]) -> str:
    parts = []
    for role, counts in _mapping(calibration.get("corpora")).items():
        n = {name: shown(_mapping(counts).get(name), ".0f") for name in _COUNTS}
        use = f"{n['selection_rows']} rows for the features, {n['threshold_rows']} for the threshold, "
        use += f"{n['report_rows']} held out"
        if calibration.get("windowed"):
            use = f"{n['selection_rows']} rows, each scored by weights that were fitted without it"
            if n["report_rows"] != n["selection_rows"]:  # a search put some aside
                use += f", and {n['report_rows']} rows held out"
        parts.append(f"{n['documents']} documents of {as_plain_text(role)} text, {n['tokens']} tokens ({use})")
    if not parts:
        return "none; features and threshold were set by hand"
    settings = [
        f"{key} {as_plain_text(calibration[key])}"
        for key in (
            "importance",
            "ratio_percentile",
            "threshold_percentile",
            "threshold_margin",
            "max_length",
            "chat_template",
            "for_serving",
        )
        if calibration.get(key) is not None
    ]
    return "; ".join([*parts, ", ".join(settings)])


def _table(calibration: dict[str, Any]) -> str:
    rows = fire_rows(calibration)
    if not rows:
        return "Nothing was measured: features and threshold were set by hand."
    lines = ["| measured on rows held out from fitting | rate | 95 % interval | n |", "|---|---|---|---|"]
    lines += [f"| fires on {role} text | {' | '.join(numbers)} |" for role, *numbers in rows]
    auroc = real(calibration.get("auroc"))
    if auroc is not None:
        lines.append(f"| the statistic separates forget from retain text (AUROC) | {auroc:.3f} | | |")
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
    return "\n".join(["Fire rates of other thresholds on the same held-out rows:", "", *lines])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _draw(config: SAEGuardrailConfig, path: Path) -> None:
    calibration = config.calibration or {}
    if any(calibration.get(name) for name in _STATISTICS):
        try:
            draw_calibration(calibration, path, statistic_in_words(config))
        except (ImportError, GuardrailError):
            return
