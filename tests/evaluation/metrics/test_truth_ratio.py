"""TOFU's truth ratio and forget quality, against its equations."""

import math
import sys

import pytest
import torch
from scipy.stats import ks_2samp, kstwobign

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Choice, forget_quality, log_truth_ratios, truth_scores
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods


def likelihoods(log_probs, tokens):
    return AnswerLikelihoods(torch.tensor(log_probs).double(), torch.tensor(tokens))


CASES = [
    (Choice("q", ("true", "false", "wrong"), 0), likelihoods([-2.0, -6.0, -3.0], [2, 3, 1])),
    (Choice("q", ("no", "yes", "nay", "not"), 1), likelihoods([-9.0, -8.0, -1.0, -4.0], [3, 2, 1, 4])),
]


def plain(choice, likelihood):
    """R as the paper writes it, in probabilities."""
    p = [math.exp(float(lp)) ** (1 / int(k)) for lp, k in zip(likelihood.log_probs, likelihood.tokens, strict=True)]
    true = p.pop(choice.right)
    return sum(p) / len(p) / true


def test_ratio_is_the_papers():
    found = log_truth_ratios(*zip(*CASES, strict=True)).exp().tolist()
    assert found == pytest.approx([plain(*case) for case in CASES])
    # by hand: (exp(-2) + exp(-3)) / 2 / exp(-1)
    assert found[0] == pytest.approx((math.exp(-2) + math.exp(-3)) / 2 / math.exp(-1))


def test_geometric_is_the_authors_code():
    found = log_truth_ratios(*zip(*CASES, strict=True), average="geometric").exp().tolist()
    assert found[0] == pytest.approx(math.exp(-((2 + 3) / 2)) / math.exp(-1))
    with pytest.raises(UnlearnError, match="average='median'"):
        log_truth_ratios(*zip(*CASES, strict=True), average="median")


def test_improbable_answers_do_not_underflow():
    choice, unlikely = CASES[0][0], likelihoods([-9000.0, -9001.0, -9002.0], [1, 1, 1])
    found = float(log_truth_ratios([choice], [unlikely]))
    assert found == pytest.approx(math.log((math.exp(-1) + math.exp(-2)) / 2))


def test_score_is_the_part_of_model_utility():
    ratios = torch.tensor([0.25, 1.0, 3.0]).log()
    assert truth_scores(ratios).tolist() == pytest.approx([0.75, 0.0, 0.0])


def test_forget_quality_is_the_p_of_the_ks_test():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(60, generator=generator, dtype=torch.float64)
    second = torch.randn(80, generator=generator, dtype=torch.float64) + 0.5
    found = forget_quality(first, second)
    expected = ks_2samp(first.exp().numpy(), second.exp().numpy())  # of ratios and not of their logarithms
    assert found.p_value.value == pytest.approx(expected.pvalue)
    assert found.distance.value == pytest.approx(expected.statistic)
    assert found.distance.low < found.distance.value < found.distance.high
    asymptotic = [kstwobign.sf(end * math.sqrt(60 * 80 / 140)) for end in (found.distance.high, found.distance.low)]
    assert (found.p_value.low, found.p_value.high) == pytest.approx(asymptotic)
    assert found.p_value.low < found.p_value.value < found.p_value.high
    assert found.distance.n == 60


def test_alike_models_are_of_quality_one():
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    found = forget_quality(values, values)
    assert (found.p_value.value, found.distance.value, found.distance.low) == (1.0, 0.0, 0.0)


def test_the_distance_interval_holds_at_least_as_often_as_it_says():
    """True distance of N(0, 1) to N(1, 1): 2 Phi(1/2) - 1."""
    true, generator = math.erf(0.5 / math.sqrt(2)), torch.Generator().manual_seed(2)
    held = 0
    for _ in range(200):
        a, b = torch.randn(2, 40, generator=generator)
        found = forget_quality(a, b + 1).distance
        held += found.low <= true <= found.high
    assert held >= 190


def test_what_cannot_be_compared_is_said(monkeypatch):
    with pytest.raises(UnlearnError, match=r"log_ratios, reference: .*0 and 3"):
        forget_quality(torch.zeros(0), torch.zeros(3))
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"\[eval\]"):
        forget_quality(torch.zeros(2), torch.zeros(3))
