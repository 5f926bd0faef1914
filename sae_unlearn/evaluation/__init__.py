"""Measuring what a model knows, with and without an adapter."""

from sae_unlearn.evaluation.intervals import bootstrap_interval
from sae_unlearn.evaluation.loss import row_losses
from sae_unlearn.evaluation.recall import Fact, Recall, complete, recall


__all__ = ["Fact", "Recall", "bootstrap_interval", "complete", "recall", "row_losses"]
