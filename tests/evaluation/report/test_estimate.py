"""Estimates and their intervals."""

import pytest
import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate, pair_auc
from sae_unlearn.stats import pair_wins, wilson_interval


# by hand and from published tables (Newcombe, Statistics in Medicine 17, 1998: 81 of 263, 15 of 148, 0 of 20, 1 of 29)
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_one(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "n", "field"), [(1, 0, "n"), (3, 2, "successes"), (-1, 2, "successes")])
def test_wilson_of_nonsense_is_refused(successes, n, field):
    with pytest.raises(UnlearnError, match=f"^{field}="):
        wilson_interval(successes, n)


def test_a_share_of_none_or_all_is_no_point():
    none, every = Estimate.share([False] * 10), Estimate.share([True] * 10)
    assert (none.value, none.low) == (0.0, pytest.approx(0.0, abs=1e-9))
    assert none.high == pytest.approx(0.278, abs=1e-3)
    assert (every.value, every.high) == (1.0, pytest.approx(1.0))
    assert every.low == pytest.approx(1 - none.high)


def test_trials_of_one_subject_count_as_one():
    hits = [True, True, False, False, True, True]
    assert Estimate.share(hits, ["a", "a", "b", "b", "c", "c"]) == Estimate.share([True, False, True])
    assert Estimate.share([True] * 30, ["a"] * 15 + ["b"] * 15).n == 2
    assert Estimate.share([True, False, True], ["a"] * 3).value == pytest.approx(2 / 3)


def test_a_mean_says_its_n_and_interval():
    found = Estimate.mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (found.value, found.n) == (2.5, 4)
    assert 1.0 <= found.low < 2.5 < found.high <= 4.0
    assert str(Estimate(0.5, 0.25, 0.75, 12)) == "0.50 [0.25, 0.75] (n=12)"
    assert Estimate(0.5, 0.25, 0.75, 12).to_dict() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 12}


def test_auc_is_that_of_scikit_learn():
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    first, second = torch.randn(30).round(decimals=1) + 0.5, torch.randn(20).round(decimals=1)  # rounded: with ties
    found = pair_auc(pair_wins(first, second))
    expected = roc_auc_score([1] * 30 + [0] * 20, torch.cat([first, second]))
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    assert found.n == 30


def test_the_interval_of_an_auc_covers_it():
    """True AUC of N(1, 1) against N(0, 1): Phi(1/sqrt(2)) = 0.760."""
    inside = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        first, second = torch.randn(25, generator=generator) + 1, torch.randn(25, generator=generator)
        found = pair_auc(pair_wins(first, second), draws=400)
        inside += found.low <= 0.760 <= found.high
    assert inside >= 52


def test_pairs_compared_more_often_weigh_more():
    wins, counts = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 1.0]])
    assert pair_auc(wins, counts).value == 0.75


def test_no_pair_is_refused():
    with pytest.raises(UnlearnError, match="counts: "):
        pair_auc(torch.zeros(2, 2), torch.zeros(2, 2))
