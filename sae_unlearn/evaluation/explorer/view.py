"""Content of a guardrail's page as plain data for its template, which escapes every string.

A config is untrusted: a value that is not a number where one is expected is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sae_unlearn.checks import real, reals, shown
from sae_unlearn.evaluation.explorer.feature_contexts import Context, FeatureContexts, GuardedFeature
from sae_unlearn.evaluation.explorer.neuronpedia import feature_page, neuronpedia_id
from sae_unlearn.evaluation.explorer.sweep import SweepPoint
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.files.terminal import printable
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.summary import ROLES


_LIMIT = 20_000  # characters of a piece of text


def stored_statistics(calibration: dict[str, Any]) -> dict[str, list[float]]:
    """Return the statistics of the rows held out from fitting, by role. Roles without any are left out."""
    found = {role: reals(calibration.get(f"statistic_{role}")) for role in ROLES}
    return {role: rows for role, rows in found.items() if rows}


def feature_rows(
    config: SAEGuardrailConfig,
    clamp: Sequence[float],
    contexts: FeatureContexts | None,
    labels: Mapping[int, str] | None = None,
) -> list[dict[str, Any]]:
    """Return each feature's id, label, page, clamp value, records of the fit, and measurements."""
    identity = neuronpedia_id(config.sae_source)
    ids = config.feature_ids or ()
    recorded = _recorded(config, len(clamp))
    seen = contexts.features if contexts else [None] * len(ids)
    return [
        {
            "name": str(feature),
            "label": (labels or {}).get(feature, ""),
            "anchor": f"feature-{place + 1}",
            "page": feature_page(identity, feature),
            "clamp": f"{clamp[place]:.4g}",
            "fit": {name: values[place] for name, values in recorded.items()},
            "seen": _seen(one),
            "contexts": [_context(context, one) for context in one.contexts] if one else [],
        }
        for place, (feature, one) in enumerate(zip(ids, seen, strict=True))
    ]


def sweep_rows(points: tuple[SweepPoint, ...]) -> list[list[str]]:
    """Return a sweep as a table: the setting, and for each role the change and the fire rate."""
    return [
        [f"{point.setting:.4g}"]
        + [cell for role in ROLES for cell in (_estimate(point.change.get(role)), shown(point.fires.get(role), ".1%"))]
        for point in points
    ]


def _recorded(config: SAEGuardrailConfig, count: int) -> dict[str, list[str]]:
    """The records of the fit of each feature, if it recorded them for all."""
    found = (config.calibration or {}).get("features")
    found = found if isinstance(found, dict) else {}
    lists = {
        key: [real(value) for value in values]
        for key, values in found.items()
        if isinstance(values, list) and len(values) == count
    }
    rows = {
        f"density_{role}": [shown(v, ".2%") for v in lists[f"density_{role}"]]
        for role in ROLES
        if f"density_{role}" in lists
    }
    if {"score_forget", "score_retain"} <= set(lists):
        pairs = zip(lists["score_forget"], lists["score_retain"], strict=True)
        rows["ratio"] = [_ratio(forget, retain) for forget, retain in pairs]
    return rows


def _seen(feature: GuardedFeature | None) -> dict[str, str]:
    if feature is None:
        return {}
    found = {f"density_{role}": f"{value:.2%}" for role, value in feature.density.items()}
    if len(feature.mean_squared) == len(ROLES):
        found["ratio"] = _ratio(feature.mean_squared["forget"], feature.mean_squared["retain"])
    return found


def _ratio(forget: float | None, retain: float | None) -> str:
    if forget is None or retain is None:
        return "-"
    if retain <= 0:
        return "∞" if forget > 0 else "-"
    return f"{forget / retain:.3g}"


def _context(context: Context, feature: GuardedFeature) -> dict[str, Any]:
    """A context as pieces with text, activation, and share of the feature's highest activation.

    The share is None at tokens where the feature is inactive. Adjacent inactive tokens are one piece.
    """
    highest = max(found.activations[found.peak] for found in feature.contexts)
    pieces: list[dict[str, Any]] = []
    for place, (token, activation) in enumerate(zip(context.tokens, context.activations, strict=True)):
        text = printable(token.replace("\n", "⏎"), _LIMIT)
        if activation > 0:
            share = max(0.08, min(1.0, activation / highest))
            peak = place == context.peak
            pieces.append({"text": text or "·", "share": f"{share:.2f}", "value": f"{activation:.4g}", "peak": peak})
        elif pieces and pieces[-1]["share"] is None:
            pieces[-1]["text"] += text
        else:
            pieces.append({"text": text, "share": None})
    return {
        "role": context.role,
        "document": context.document + 1,
        "cut": context.cut,
        "highest": f"{context.activations[context.peak]:.4g}",
        "pieces": pieces,
    }


def _estimate(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
