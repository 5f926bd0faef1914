"""What a guardrail is, in words and by its config, which may come from anybody."""

import math
from collections.abc import Sequence
from typing import Any

from sae_unlearn.guardrail.config import SAEGuardrailConfig


def guardrail_facts(config: SAEGuardrailConfig, clamp: Sequence[float]) -> dict[str, str]:
    """The guardrail's parts by name, as plain text that is not escaped for anything.

    Args:
        clamp: the values its features are clamped to, `[N]`.
    """
    ids = ", ".join(map(str, config.feature_ids)) if config.feature_ids else "ids not recorded"
    sae = config.sae_source or {}
    named = [f"{key} {sae[key]}" for key in ("id", "subfolder", "revision", "architecture", "sha256") if sae.get(key)]
    edit = real((config.calibration or {}).get("edit_to_residual"))
    return {
        "base model": f"{config.base_model_name_or_path or 'not recorded'}"
        f" ({config.num_layers or '?'} layers, width {config.hidden_size})"
        + ("" if config.base_fingerprint else ", no fingerprint"),
        "layer": f"{config.layer} (its output)",
        "features": f"{config.num_features}: {ids}",
        "SAE": ", ".join(named) or "not recorded",
        "gate": f"statistic {config.statistic} above {config.tau:.4g}, scope {config.gate_scope}, "
        + ("stays fired" if config.sticky else "may fall quiet again")
        + f", at least {config.min_tokens} tokens"
        + (", each message by itself too" if config.message_boundary_ids else ""),
        "action": config.action,
        "dose": f"clamp {config.clamp_mode} features at {min(clamp):.4g} to {max(clamp):.4g}"
        + (f" ({config.clamp_scale:g} in unit {config.clamp_unit})" if config.clamp_scale is not None else ""),
        "edit": "not measured" if edit is None else f"{edit:.3g} of the residual stream's norm",
    }


def real(value: Any) -> float | None:
    """A number that can be shown; None for anything else that stands in a config."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e100:
        return None
    return float(value)


def reals(values: Any) -> list[float]:
    """The finite numbers of a list."""
    found = [real(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None and math.isfinite(value)]
