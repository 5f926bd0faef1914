"""Measuring what a model knows, with and without an adapter, and what it holds of entities."""

from sae_unlearn.evaluation.audit.audit import audit
from sae_unlearn.evaluation.audit.card import put_into_card
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.evaluate import evaluate
from sae_unlearn.evaluation.explorer.explorer import GuardrailPicture, picture_guardrail, stored_picture
from sae_unlearn.evaluation.explorer.feature_contexts import (
    Context,
    FeatureContexts,
    GuardedFeature,
    feature_contexts,
)
from sae_unlearn.evaluation.explorer.sweep import Sweep, SweepPoint, sweep_guardrail
from sae_unlearn.evaluation.interference import interference
from sae_unlearn.evaluation.metrics.choices import Choice, option_likelihoods, right_by_letter, right_by_likelihood
from sae_unlearn.evaluation.metrics.firing import row_firings
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods, answer_likelihoods
from sae_unlearn.evaluation.metrics.ranking import Ranks, candidate_log_probs, rank_answers
from sae_unlearn.evaluation.metrics.recall import (
    REFUSALS,
    AnswerCounts,
    Fact,
    Recall,
    RougeL,
    ask,
    complete,
    count_answers,
    recall,
    rouge_l,
)
from sae_unlearn.evaluation.metrics.text import row_divergences, row_losses
from sae_unlearn.evaluation.metrics.tofu import ModelUtility, TofuSet, model_utility
from sae_unlearn.evaluation.metrics.truth_ratio import ForgetQuality, forget_quality, log_truth_ratios, truth_scores
from sae_unlearn.evaluation.report.comparison import Change, Comparison, compare
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.evaluation.representation.held_out_latents import HeldOutFiring, held_out_firing, held_out_latents
from sae_unlearn.evaluation.representation.probes import (
    BaseProbe,
    Discrimination,
    ProbeReading,
    fit_base_probe,
    read_base_probe,
    refit_discriminator,
)
from sae_unlearn.evaluation.representation.states import entity_facts, entity_states
from sae_unlearn.evaluation.representation.variance_ratio import VarianceRatio, variance_ratio
from sae_unlearn.stats import bootstrap_interval, wilson_interval


__all__ = [
    "REFUSALS",
    "AnswerCounts",
    "AnswerLikelihoods",
    "AuditReport",
    "AuditRow",
    "BaseProbe",
    "Change",
    "Choice",
    "Comparison",
    "Context",
    "Discrimination",
    "Estimate",
    "Fact",
    "FeatureContexts",
    "Figure",
    "ForgetQuality",
    "GuardedFeature",
    "GuardrailPicture",
    "HeldOutFiring",
    "ModelUtility",
    "ProbeReading",
    "Ranks",
    "Recall",
    "Report",
    "RougeL",
    "Sweep",
    "SweepPoint",
    "TofuSet",
    "VarianceRatio",
    "answer_likelihoods",
    "ask",
    "audit",
    "bootstrap_interval",
    "candidate_log_probs",
    "compare",
    "complete",
    "count_answers",
    "entity_facts",
    "entity_states",
    "evaluate",
    "feature_contexts",
    "fit_base_probe",
    "forget_quality",
    "held_out_firing",
    "held_out_latents",
    "interference",
    "log_truth_ratios",
    "model_utility",
    "option_likelihoods",
    "picture_guardrail",
    "put_into_card",
    "rank_answers",
    "read_base_probe",
    "recall",
    "refit_discriminator",
    "right_by_letter",
    "right_by_likelihood",
    "rouge_l",
    "row_divergences",
    "row_firings",
    "row_losses",
    "stored_picture",
    "sweep_guardrail",
    "truth_scores",
    "variance_ratio",
    "wilson_interval",
]
