"""A report with one figure, for cards."""

from sae_unlearn.evaluation import Report
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure


def report(title: str) -> Report:
    """A quarter of the facts of a topic is recalled."""
    estimate = Estimate(value=0.25, low=0.1, high=0.4, n=40)
    return Report(title, (Figure("forget", "facts", "exact_recall", "share", estimate),))
