"""Description of a guardrail and of its fit's records, in words.

The config is untrusted: a value that should be a number and is not is left out or shown as "-". Strings are not
escaped.
"""

from collections.abc import Sequence
from typing import Any

from sae_unlearn.checks import real, shown
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.refusal_text import message_in_words


ROLES = ("forget", "retain")
DOSE_UNITS = ("feature", "residual", "absolute")
STATISTICS = {
    "ratio": "share of a row's tokens at which a guarded feature is active",
    "windowed": "mean score of a row's tokens, or their cumulative sum, against what other text has",
}
WEIGHED_STATISTICS = {
    "ratio": "evidence of a row's tokens for the topic, in nats a token",
    "windowed": STATISTICS["windowed"],
}
CURVE = {"percentile": "g", "threshold": ".4g", "forget_rate": ".1%", "retain_rate": ".1%"}
"""Columns of `curve_rows`, with the format of their numbers."""


def guardrail_facts(config: SAEGuardrailConfig, clamp: Sequence[float]) -> dict[str, str]:
    """Return the guardrail's parts by name, as plain text.

    Args:
        config (SAEGuardrailConfig): The guardrail's config.
        clamp (Sequence[float]): Clamp values of its features, `[N]`.
    """
    ids = ", ".join(map(str, config.feature_ids or ()))
    base, dose = config.base_model, recorded_dose(config)
    sae = config.sae_source or {}
    named = [f"{key} {sae[key]}" for key in ("id", "subfolder", "revision", "architecture", "sha256") if sae.get(key)]
    edit = real((config.calibration or {}).get("edit_to_residual"))
    return {
        "base model": f"{config.base_model_name_or_path or 'not recorded'}"
        f" ({base.num_layers or '?'} layers, width {base.hidden_size})" + _fingerprint_in_words(config),
        "layer": f"{config.layer} (its output)",
        "features": f"{config.num_features}: {ids}",
        "SAE": ", ".join(named) or "not recorded",
        "gate": f"statistic {config.statistic} above {config.tau:.4g}, "
        + "".join(f"{words}, " for words in tokens_in_words(config))
        + f"scope {config.gate_scope}, "
        + ("stays fired" if config.sticky else "may stop firing")
        + f", at least {config.statistic_kwargs.min_tokens} tokens"
        + (f", also each {parts_in_words(config)} by itself" if config.tokens.boundary_ids else ""),
        "action": config.action,
        **message_in_words(config),
        "dose": f"clamp {config.clamp_mode} features at {min(clamp):.4g} to {max(clamp):.4g}"
        + (f" ({dose[1]:g} in unit {dose[0]})" if dose else ""),
        "edit": "not measured" if edit is None else f"{edit:.3g} of the residual stream's norm",
    }


def recorded_dose(config: SAEGuardrailConfig) -> tuple[str, float] | None:
    """Return unit and scale of the dose that the fit recorded in `calibration["dose"]`; None without them."""
    dose = (config.calibration or {}).get("dose")
    if not isinstance(dose, dict) or dose.get("unit") not in DOSE_UNITS:
        return None
    scale = real(dose.get("scale"))
    return None if scale is None else (dose["unit"], scale)


def _fingerprint_in_words(config: SAEGuardrailConfig) -> str:
    if not config.base_model.fingerprint:
        return ", no fingerprint"
    return "" if config.base_model.fingerprint.get("matrices") else ", fingerprint without matrices"


def statistic_in_words(config: SAEGuardrailConfig) -> str:
    """Return the description of the statistic that is compared with the threshold."""
    words = WEIGHED_STATISTICS if config.feature_evidence else STATISTICS
    return words[config.statistic] + (
        f" (the largest of its {parts_in_words(config)}s')" if config.tokens.boundary_ids else ""
    )


def parts_in_words(config: SAEGuardrailConfig) -> str:
    """Return what the boundaries of the config end: a message, or a paragraph."""
    return "paragraph" if config.tokens.paragraph_ids else "message"


def tokens_in_words(config: SAEGuardrailConfig) -> list[str]:
    """Return how the gate counts tokens, if not 1 for each hot one."""
    weighed = ["tokens weighted by the evidence of their features"] if config.feature_evidence else []
    if config.gate_levels:
        weighed = ["tokens scored along one direction of the residual stream"]
    norm = config.tokens.outlier_norm
    return weighed if norm is None else [*weighed, f"tokens of norms above {norm:.4g} left out"]


def fire_rows(calibration: dict[str, Any]) -> list[list[str]]:
    """Return fire rates on held-out rows: role, rate, 95 % interval, n, without roles that have no rate."""
    rows = []
    for role in ROLES:
        found = calibration.get(f"fire_rate_{role}")
        if isinstance(found, dict) and real(found.get("rate")) is not None:
            rate, low, high = (shown(found.get(name), ".1%") for name in ("rate", "low", "high"))
            rows.append([role, rate, f"{low} to {high}", shown(found.get("n"), ".0f")])
    return rows


def curve_rows(calibration: dict[str, Any]) -> list[list[str]]:
    """Return fire rates at other percentiles of the retain rows, with the columns `CURVE`."""
    curve = calibration.get("curve")
    points = [point for point in curve if isinstance(point, dict)] if isinstance(curve, list) else []
    return [[shown(point.get(name), form) for name, form in CURVE.items()] for point in points]


def fit_warnings(calibration: dict[str, Any]) -> list[str]:
    """Return the warnings of the fit."""
    return _texts(calibration.get("warnings"))


def fit_words(calibration: dict[str, Any]) -> list[str]:
    """Return what the fit measured of its gate, in sentences; empty unless the statistic is `windowed`."""
    return _texts(calibration.get("words"))[:8]


def _texts(found: Any) -> list[str]:
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
