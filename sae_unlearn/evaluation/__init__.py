"""Measure what a model knows, with and without an adapter."""

from sae_unlearn.evaluation.audit.audit import audit
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.card import add_to_card
from sae_unlearn.evaluation.datasets.entities import entity_facts
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
    ask,
    complete,
    count_answers,
    recall,
)
from sae_unlearn.evaluation.metrics.rouge import RougeL, rouge_l
from sae_unlearn.evaluation.metrics.text import row_divergences, row_losses
from sae_unlearn.evaluation.metrics.tofu import ModelUtility, TofuSet, model_utility
from sae_unlearn.evaluation.metrics.truth_ratio import ForgetQuality, forget_quality, log_truth_ratios, truth_scores
from sae_unlearn.evaluation.report.comparison import Change, Comparison, compare
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.stats import bootstrap_interval, wilson_interval


__all__ = [
    "REFUSALS",
    "AnswerCounts",
    "AnswerLikelihoods",
    "AuditReport",
    "AuditRow",
    "Change",
    "Choice",
    "Comparison",
    "Context",
    "Estimate",
    "Fact",
    "FeatureContexts",
    "Figure",
    "ForgetQuality",
    "GuardedFeature",
    "GuardrailPicture",
    "ModelUtility",
    "Ranks",
    "Recall",
    "Report",
    "RougeL",
    "Sweep",
    "SweepPoint",
    "TofuSet",
    "add_to_card",
    "answer_likelihoods",
    "ask",
    "audit",
    "bootstrap_interval",
    "candidate_log_probs",
    "compare",
    "complete",
    "count_answers",
    "entity_facts",
    "evaluate",
    "feature_contexts",
    "forget_quality",
    "interference",
    "log_truth_ratios",
    "model_utility",
    "option_likelihoods",
    "picture_guardrail",
    "rank_answers",
    "recall",
    "right_by_letter",
    "right_by_likelihood",
    "rouge_l",
    "row_divergences",
    "row_firings",
    "row_losses",
    "stored_picture",
    "sweep_guardrail",
    "truth_scores",
    "wilson_interval",
]
