"""Steps of a fit with `statistic="windowed"`: all rows serve for weights and out-of-fold threshold."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import check_config
from sae_unlearn.guardrail.fit.cross_calibration import LONGEST
from sae_unlearn.guardrail.fit.direction_score import DirectionScore, fit_direction
from sae_unlearn.guardrail.fit.encoded_rows import CollectedRows
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.options import FitPlan
from sae_unlearn.guardrail.fit.passes import Rows
from sae_unlearn.guardrail.fit.windowed_fit import (
    GateScore,
    WindowedFit,
    figures,
    fit_windowed,
    row_values,
    sentences,
)
from sae_unlearn.guardrail.weights import EncoderRows


def fitted_gate(
    plan: FitPlan,
    config: SAEGuardrailConfig,
    collected: Mapping[str, CollectedRows],
    rows: Mapping[str, Rows],
    guarded: EncoderRows,
) -> tuple[WindowedFit, EncoderRows]:
    """Fit weights, constants and threshold, and set them in `config`, whose guarded features are chosen.

    Returns:
        The fit, and the encoder: the rows of the guarded features, and then what else the gate reads.

    Raises:
        GuardrailError: If there are too few documents, or the topic's tokens do not score above others.
    """
    forget, retain = (
        collected[role].corpus(rows[role].selection_documents, config.tokens.outlier_norm)
        for role in ("forget", "retain")
    )
    alpha, smallest = 1 - plan.threshold_percentile / 100, config.statistic_kwargs.min_tokens
    longest = max(LONGEST, plan.read["max_length"]) if plan.for_serving else LONGEST
    fit_score: Callable[[Any, Any], GateScore] = fit_direction
    if plan.gate_reads == "features":
        fit_score = partial(fit_features, number=plan.num_gate_features)
    fit = fit_windowed(forget, retain, fit_score, alpha, plan.margin, smallest, longest)
    encoder, bias = _set_score(plan, config, fit.score, guarded)
    constants = fit.calibrated.parameters._asdict()
    config.statistic_kwargs = replace(config.statistic_kwargs, bias=bias, **constants)
    config.threshold = fit.calibrated.threshold if plan.threshold is None else plan.threshold
    check_config(config)
    return fit, encoder


def _set_score(
    plan: FitPlan, config: SAEGuardrailConfig, score: GateScore, guarded: EncoderRows
) -> tuple[EncoderRows, float]:
    """Set the score's features or levels in `config`, and their evidence.

    Returns:
        The encoder, and the bias of the score.
    """
    if isinstance(score, DirectionScore):
        levels, evidence = score.levels(float(guarded.weight.norm(dim=1).median()))
        config.gate_levels = len(evidence)
        config.feature_evidence = [0.0] * config.num_features + evidence
        return guarded.joined(levels), 0.0
    weights = dict(zip(score.feature_ids.tolist(), score.weights.tolist(), strict=True))
    clamped = [*(config.feature_ids or ())]
    config.gate_feature_ids = [i for i in weights if i not in clamped]
    config.feature_evidence = [weights.get(i, 0.0) for i in (*clamped, *config.gate_feature_ids)]
    if not config.gate_feature_ids:
        return guarded, score.bias
    return guarded.joined(EncoderRows.of(plan.sae.slice(config.gate_feature_ids))), score.bias


def out_of_fold_values(fit: WindowedFit) -> dict[str, Tensor]:
    """Return the out-of-fold statistics of all rows; those of other text set the threshold as well."""
    scores, constants = fit.scores, fit.calibrated.parameters
    topic = row_values(scores.topic, scores.topic_ends, constants)
    other = row_values(scores.other, scores.other_ends, constants)
    return {"threshold": other, "forget": topic, "retain": other}


def measured(fit: WindowedFit, threshold: float) -> dict[str, Any]:
    """Return measurements of the gate at `threshold`, as figures and in sentences."""
    found = figures(fit._replace(calibrated=fit.calibrated._replace(threshold=threshold)))
    return {"auroc": found["auroc"], "windowed": found, "words": sentences(found)}
