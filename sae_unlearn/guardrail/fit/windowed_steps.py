"""Steps of a fit with `statistic="windowed"`: all rows serve for weights and out-of-fold threshold."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import check_config
from sae_unlearn.guardrail.fit.cross_calibration import LONGEST
from sae_unlearn.guardrail.fit.encoded_rows import EncodedRows
from sae_unlearn.guardrail.fit.options import FitPlan
from sae_unlearn.guardrail.fit.passes import Rows
from sae_unlearn.guardrail.fit.windowed_fit import WindowedFit, figures, fit_windowed, row_values, sentences


def fitted_gate(
    plan: FitPlan, config: SAEGuardrailConfig, encoded: Mapping[str, EncodedRows], rows: Mapping[str, Rows]
) -> WindowedFit:
    """Fit weights, constants and threshold, and set them in `config`, whose guarded features are chosen.

    Raises:
        GuardrailError: If there are too few documents, or the topic's tokens do not score above others.
    """
    forget, retain = (
        encoded[role].corpus(rows[role].selection_documents, config.tokens.outlier_norm)
        for role in ("forget", "retain")
    )
    alpha, smallest = 1 - plan.threshold_percentile / 100, config.statistic_kwargs.min_tokens
    longest = max(LONGEST, plan.read["max_length"]) if plan.for_serving else LONGEST
    fit = fit_windowed(forget, retain, plan.num_gate_features, alpha, plan.margin, smallest, longest)
    weights = dict(zip(fit.score.feature_ids.tolist(), fit.score.weights.tolist(), strict=True))
    guarded = [*(config.feature_ids or ())]
    config.gate_feature_ids = [i for i in weights if i not in guarded]
    config.feature_evidence = [weights.get(i, 0.0) for i in (*guarded, *config.gate_feature_ids)]
    constants = fit.calibrated.parameters._asdict()
    config.statistic_kwargs = replace(config.statistic_kwargs, bias=fit.score.bias, **constants)
    config.threshold = fit.calibrated.threshold if plan.threshold is None else plan.threshold
    check_config(config)
    return fit


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
