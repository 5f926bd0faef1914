"""Calibration of the threshold, and its fire rates on held-out rows."""

import math
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.stats import auc, wilson_interval


CURVE_PERCENTILES = (50.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.5, 99.0, 100.0)
MIN_THRESHOLD_ROWS = 8
_KEPT_VALUES = 512  # row statistics kept in the artefact, for its picture


def percentile_threshold(retain: Tensor, percentile: float) -> float:
    """Return the percentile of the rows' statistics, linearly interpolated as by numpy."""
    return float(torch.quantile(retain.double(), percentile / 100))


def between(low: float, forget: Tensor, margin: float) -> float:
    """Return the threshold moved from `low` towards the lower quartile of the forget rows' statistics.

        threshold = low + margin * max(0, quartile(forget) - low)

    If the topic scores well above other text, the threshold keeps a distance from both. If not, `low` is kept.
    """
    return low + margin * max(0.0, percentile_threshold(forget, 25.0) - low) if len(forget) else low


def conformal_threshold(retain: Tensor, alpha: float) -> float | None:
    """Return the split-conformal threshold; None if n rows are too few for `alpha`.

    If rows are exchangeable, a fresh retain row exceeds it with probability at most `alpha`. It is the
    `ceil((n + 1)(1 - alpha))`-th smallest statistic.

    Source: Vovk et al. 2005; Bates et al. 2023 (arXiv 2104.08279).
    """
    n = len(retain)
    rank = math.ceil((n + 1) * (1 - alpha))
    return float(retain.sort().values[rank - 1]) if rank <= n else None


def fire_rate(statistics: Tensor, threshold: float) -> dict[str, Any]:
    """Return the share of rows above the threshold with its 95 % interval: rate, n, low, high."""
    hits, n = int((statistics > threshold).sum()), len(statistics)
    low, high = wilson_interval(hits, n) if n else (0.0, 1.0)
    return {"rate": round(hits / n, 4) if n else None, "n": n, "low": round(low, 4), "high": round(high, 4)}


def report(
    config: SAEGuardrailConfig,
    calibrated_on: Tensor,
    forget: Tensor,
    retain: Tensor,
    percentile: float | None,
    margin: float | None = None,
) -> dict[str, Any]:
    """Return the measurements of the gate as plain data, for the config and the card.

    Args:
        config (SAEGuardrailConfig): The guardrail's config.
        calibrated_on (Tensor): Statistics `[n]` of the retain rows that set the threshold.
        forget (Tensor): Statistics of forget rows held out from selection and threshold.
        retain (Tensor): Statistics of retain rows held out from selection and threshold.
        percentile (float or None): Percentile of the threshold; None if the threshold was passed.
        margin (float, *optional*): Margin of the threshold; None if the threshold was passed.
    """
    found: dict[str, Any] = {
        "threshold": config.threshold,
        "threshold_percentile": percentile,
        "threshold_margin": margin,
        "fire_rate_forget": fire_rate(forget, config.tau),
        "fire_rate_retain": fire_rate(retain, config.tau),
        "auroc": auroc(forget, retain),
        "statistic_forget": _kept(forget),
        "statistic_retain": _kept(retain),
        "statistic_threshold_rows": _kept(calibrated_on),
    }
    if len(calibrated_on):
        alpha = 1 - percentile / 100 if percentile is not None else 0.05
        found["conformal"] = {
            "alpha": _rounded(alpha),
            "n": len(calibrated_on),
            "threshold": conformal_threshold(calibrated_on, alpha),
        }
        found["curve"] = [_at_percentile(p, calibrated_on, forget, retain) for p in CURVE_PERCENTILES]
    return found


PLAIN_TEXT = (
    "Fitted on plain text, and the tokenizer has a chat template: in the template this gate may never fire. If the "
    "model is used in it, fit with chat_template=True."
)
"""Warning for a model that is likely to be used in chats. Measured: `docs/evidence/chat-template.md`."""

NO_BOUNDARIES = (
    "The chat template does not mark messages by special tokens, so the gate reads a conversation as one text: a long "
    "system prompt or an earlier message can dilute a short question. Measure it on conversations as you serve them."
)


def warnings_of(calibration: dict[str, Any]) -> list[str]:
    """Return warnings on the gate's measurements, in sentences; empty if there is nothing to report."""
    found = []
    curve = calibration.get("curve") or []
    n = (calibration.get("conformal") or {}).get("n", 0)
    percentile = calibration.get("threshold_percentile")
    if percentile is not None and n * (1 - percentile / 100) < 1:
        found.append(
            f"The threshold is the {percentile}th percentile of only {n} retain rows, so it is close to their largest. "
            f"Pass at least {math.ceil(4 / (1 - percentile / 100))} retain documents."
        )
    forget_rate = calibration["fire_rate_forget"]
    if forget_rate["n"] and forget_rate["rate"] < 0.8:
        found.append(
            f"The gate fires on only {forget_rate['rate']:.0%} of {forget_rate['n']} held-out forget rows; the rest "
            "pass unguarded. Pass more forget text in the format of deployment, or lower threshold_percentile."
        )
    retain_rate = calibration["fire_rate_retain"]
    expected = 1 - (percentile if percentile is not None else 95.0) / 100
    if retain_rate["n"] and retain_rate["low"] > expected + 0.02:
        found.append(
            f"The gate fires on {retain_rate['rate']:.0%} of {retain_rate['n']} held-out retain rows, more than the "
            f"{expected:.0%} that was requested. The retain text is uneven or too little."
        )
    near = [c for c in curve if percentile is not None and abs(c["percentile"] - percentile) <= 5 and c["forget_rate"]]
    if near and max(c["forget_rate"] for c in near) - min(c["forget_rate"] for c in near) > 0.2:
        found.append(
            "The margin is thin: moving threshold_percentile by 5 changes the share of forget rows caught by more "
            "than 20 points (see the curve)."
        )
    return found


def _at_percentile(percentile: float, calibrated_on: Tensor, forget: Tensor, retain: Tensor) -> dict[str, Any]:
    threshold = percentile_threshold(calibrated_on, percentile)
    return {
        "percentile": percentile,
        "threshold": _rounded(threshold),
        "forget_rate": fire_rate(forget, threshold)["rate"],
        "retain_rate": fire_rate(retain, threshold)["rate"],
    }


def auroc(forget: Tensor, retain: Tensor) -> float | None:
    """Probability that a forget row's statistic is above a retain row's; None without one of them."""
    return _rounded(auc(forget, retain)) if len(forget) and len(retain) else None


def _kept(values: Tensor) -> list[float]:
    return [round(float(v), 5) for v in values[:_KEPT_VALUES].tolist()]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)
