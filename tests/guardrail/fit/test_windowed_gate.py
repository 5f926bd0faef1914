"""The windowed statistic, its weights and its calibration, against loops in float64 and on synthetic rows."""

import math

import pytest
import torch

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.groups import StatisticKwargs
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures, windows_of
from sae_unlearn.guardrail.fit.cross_calibration import (
    OutOfFold,
    at_lengths,
    calibrate,
    excursions,
    out_of_fold,
    padded,
    peak_quantile,
    peaks,
    statistics,
    variance_of_means,
)
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.logistic import L2, Windows, deviations_of_shares, logistic_of_shares
from sae_unlearn.guardrail.gate.windowed import WindowedParameters, windowed_value


PARAMETERS = WindowedParameters(-0.3, 0.05, 1.7, 0.4375, 0.21, 8)
D_SAE = 60


def quarters(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-12, 15, shape, generator=torch.Generator().manual_seed(seed)) / 4


def rows(number: int, rate: float, seed: int, longest: int = 90) -> list[torch.Tensor]:
    """Rows whose tokens have background features, and of the topic's ten each at about `rate`, which differs by row."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        active = torch.rand(int(torch.randint(20, longest, (1,), generator=draw)), D_SAE, generator=draw) < 0.1
        share = rate * (0.5 + torch.rand(1, generator=draw))
        active[:, :10] = torch.rand(len(active), 10, generator=draw) < share
        found.append(active)
    return found


def naive(scores: list[float], p: WindowedParameters) -> list[float]:
    """`S` by the definitions, in float64."""
    found = []
    for t in range(1, len(scores) + 1):
        y = [0.0] + [sum(scores[:r]) - p.drift * r for r in range(1, t + 1)]
        peak = max(y[r] - min(y[: r + 1]) for r in range(1, t + 1))
        n = max(t, p.min_tokens)
        z = (sum(scores[:t]) - p.other_mean * t) / math.sqrt(p.row_variance * n**2 + p.token_variance * n)
        found.append(max(z, p.sum_weight * peak))
    return found


def running(scores: torch.Tensor, begun: tuple | None = None) -> tuple[torch.Tensor, tuple]:
    hits, tokens = scores.cumsum(1), torch.ones_like(scores).cumsum(1)
    if begun is not None:
        hits, tokens = hits + begun[0], tokens + begun[1]
    value, lowest, peak = windowed_value(hits, tokens, PARAMETERS, *(begun[2:] if begun else (None, None)))
    return value, tuple(column[:, -1:] for column in (hits, tokens, lowest, peak))


def test_statistic_is_that_of_its_equations() -> None:
    scores = quarters(4, 50)
    value, _ = running(scores)
    expected = torch.tensor([naive(row, PARAMETERS) for row in scores.tolist()])
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [(1,) * 40, (7, 1, 13, 19), (39, 1)])
def test_chunks_give_the_whole_to_the_last_bit(cuts: tuple[int, ...]) -> None:
    scores, begun, parts = quarters(3, 40, seed=1), None, []
    whole, _ = running(scores)
    for chunk in scores.split(cuts, dim=1):
        value, begun = running(chunk, begun)
        parts.append(value)
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_sums_are_exact_at_a_hundred_thousand_tokens() -> None:
    scores = quarters(1, 100_000, seed=2)
    _value, (hits, _, lowest, peak) = running(scores)
    exact = (scores.double() - PARAMETERS.drift).cumsum(1)
    low = exact.cummin(1).values.clamp(max=0)
    assert float(hits) == float(scores.double().sum())
    assert float(lowest) == float(low[0, -1])
    assert float(peak) == float((exact - low).max())


def test_windows_are_those_of_their_rule() -> None:
    lengths = torch.tensor([5, 0, 16, 17, 40])
    starts, ends = windows_of(lengths, 16, 8)
    first, expected = 0, []
    for length in lengths.tolist():
        if 0 < length <= 16:
            expected.append((first, first + length))
        elif length:
            expected += [(first + s, first + s + 16) for s in range(0, length - 15, 8)]
        first += length
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected


def shares(active: list[torch.Tensor], windows: Windows) -> torch.Tensor:
    tokens = torch.cat(active).double()
    return torch.stack([tokens[a:b].mean(0) for a, b in zip(windows.starts, windows.ends, strict=True)])


def test_weights_minimize_the_stated_loss() -> None:
    topic, other = rows(12, 0.3, 0), rows(20, 0.02, 1)
    encoded = [ActiveFeatures.of(some) for some in (topic, other)]
    joined, windows = ActiveFeatures.joined(encoded), Windows.of(*(some.lengths for some in encoded))
    weights, bias = logistic_of_shares(joined, windows, D_SAE)
    x = shares([*topic, *other], windows)
    torch.testing.assert_close(deviations_of_shares(joined, windows, D_SAE), x.std(0, correction=0).float())
    w, b = weights.double().requires_grad_(), torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    z = windows.signs.double() * (x @ w + b)
    loss = (windows.weights.double() * torch.log1p(torch.exp(-z))).sum() + L2 / 2 * (w**2).sum()
    loss.backward()
    assert float(w.grad.abs().max()) < 1e-5
    assert abs(float(b.grad)) < 1e-5
    for size in (16, 64):
        for sign in (-1, 1):
            some = (windows.signs == sign) & (windows.ends - windows.starts == size)
            assert some.any()
    assert float(windows.weights.sum()) == pytest.approx(1)
    assert float(windows.weights[windows.signs > 0].sum()) == pytest.approx(0.5)


def test_features_of_the_topic_are_kept_and_scores_are_quarters() -> None:
    topic, other = (ActiveFeatures.of(rows(30, rate, seed)) for rate, seed in ((0.3, 0), (0.02, 1)))
    score = fit_features(topic, other, 12)
    values = score.of(other)
    assert len(score.feature_ids) <= 12
    assert len({*score.feature_ids.tolist()} & {*range(10)}) >= 8
    assert torch.equal(values * 4, (values * 4).round())
    assert float(values.std()) == pytest.approx(1, abs=0.2)
    assert not bool((score.weights == 0).any())
    expected = [score.bias + float(score.weights[row[score.feature_ids]].sum()) for row in torch.cat(rows(30, 0.02, 1))]
    assert values.tolist() == expected


def test_small_weights_of_many_features_survive_the_rounding() -> None:
    draw = torch.Generator().manual_seed(4)
    topic, other = (
        ActiveFeatures.of([torch.rand(40, 400, generator=draw) < rate for _ in range(24)]) for rate in (0.62, 0.58)
    )
    score = fit_features(topic, other, 400)
    assert len(score.weights) > 200
    assert float(score.of(topic).mean() - score.of(other).mean()) > 1.0
    assert float(score.of(other).std()) > 1.5


def test_weights_of_features_that_other_text_hardly_has_stay_within_the_format() -> None:
    topic, other = ([torch.zeros(40, 3, dtype=torch.bool) for _ in range(24)] for _ in range(2))
    for row in topic:
        row[::3, 0] = True
    other[0][0, 1] = True
    score = fit_features(ActiveFeatures.of(topic), ActiveFeatures.of(other), 3)
    assert score.weights.abs().max() <= 16
    assert score.of(ActiveFeatures.of(topic)).mean() > score.of(ActiveFeatures.of(other)).mean() + 1


def test_rows_and_features_can_be_chosen() -> None:
    some = rows(6, 0.3, 3)
    active = ActiveFeatures.of(some)
    chosen = active.rows(torch.tensor([4, 0]))
    again = ActiveFeatures.of([some[4], some[0]])
    assert all(torch.equal(a, b) for a, b in zip(chosen, again, strict=True))
    kept = torch.tensor([7, 3])
    fewer = ActiveFeatures.of([row[:, kept] for row in some])
    found, weights = active.only(kept), torch.tensor([1.0, 4.0])
    assert torch.equal(found.scores(weights), fewer.scores(weights))
    assert torch.equal(found.starts, fewer.starts)


def test_every_row_is_scored_by_weights_fitted_without_its_document() -> None:
    topic, other = torch.arange(24) // 2, torch.arange(16)

    def scored(fit_topic, fit_other, rows_topic, rows_other):
        assert not {*topic[fit_topic].tolist()} & {*topic[rows_topic].tolist()}
        assert not {*fit_other.tolist()} & {*rows_other.tolist()}
        return [row[None].float() for row in rows_topic], [row[None].float() for row in rows_other]

    found = out_of_fold(topic, other, scored)
    assert torch.cat(found.topic).tolist() == [*range(24)]
    assert torch.cat(found.other).tolist() == [*range(16)]
    with pytest.raises(GuardrailError, match="forget=3 documents"):
        out_of_fold(torch.arange(3), other, scored)


def synthetic(seed: int, number: int, mean: float, lengths: tuple[int, int], spread: float = 0.2) -> list[torch.Tensor]:
    """Rows of scores in quarters, with a part that differs between rows and does not average out."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        length = int(torch.randint(*lengths, (1,), generator=draw))
        row = mean + spread * torch.randn(1, generator=draw) + torch.randn(length, generator=draw)
        found.append((row * 4).round() / 4)
    return found


def test_variance_of_means_is_fitted() -> None:
    a, b = variance_of_means(synthetic(0, 4000, -0.5, (64, 65)))
    assert a == pytest.approx(0.04, rel=0.3)
    assert b == pytest.approx(1.0, rel=0.15)
    assert variance_of_means(synthetic(0, 40, 0.0, (8, 9)))[0] == 0


def test_false_alarms_are_flat_in_length() -> None:
    calibrated = calibrate(
        OutOfFold(synthetic(0, 400, 1.0, (20, 120)), synthetic(1, 1500, -0.5, (20, 120))), 0.025, 0.0
    )
    fresh = synthetic(2, 3000, -0.5, (1280, 1281))
    rates = [
        float(
            (statistics(padded([row[:length] for row in fresh]), calibrated.parameters) > calibrated.threshold)
            .float()
            .mean()
        )
        for length in (20, 40, 80, 160, 320, 640, 1280)
    ]
    assert max(rates) < 0.04
    assert min(rates) > 0.001
    long = [torch.cat([row[:330], *synthetic(3, 1, 1.0, (60, 61))]) for row in fresh[:200]]
    caught = statistics(padded(long), calibrated.parameters) > calibrated.threshold
    assert float(caught.float().mean()) > 0.95  # 330 tokens of other text before 60 of the topic


def test_excursions_are_those_above_the_running_minimum() -> None:
    scores, drift = quarters(1, 300, seed=5)[0] - 0.75, 0.1875
    y, low, heights, height = 0.0, 0.0, [], 0.0
    for score in scores.tolist():
        y += score - drift
        if y <= low:
            heights, height, low = [*heights, height], 0.0, y
        height = max(height, y - low)
    expected = sorted((h for h in [*heights, height] if h > 0), reverse=True)
    assert len(expected) > 10
    assert excursions(scores.split(50), drift).tolist() == expected


@pytest.mark.parametrize("length", [320, 1280])
def test_tail_of_the_excursions_gives_the_quantile_of_longer_texts(length: int) -> None:
    """On average over corpora of 17,000 tokens, of which no 2.5 % can be counted at 1,280."""
    drift = 0.6875
    texts = padded(synthetic(99, 2000, -0.5, (length, length + 1), spread=0.0))
    highest, rates = peaks(texts, WindowedParameters(-0.5, 0.0, 1.0, drift, 1.0)), []
    for seed in range(20):
        rows = synthetic(seed, 280, -0.5, (60, 61), spread=0.0)
        found = peak_quantile(excursions(rows, drift), 280 * 60, length, 0.025, 20)
        rates.append(float((highest > found).double().mean()))
    assert 0.012 < sum(rates) / len(rates) < 0.038


def test_a_tail_of_enough_text_is_counted() -> None:
    heights = torch.arange(1000, 0, -1).double()
    found = peak_quantile(heights, 10_000, 100, 0.5, 20)
    assert found == heights[int(10_000 * math.log(2) / 100)]
    assert peak_quantile(heights[:1], 10_000, 100, 0.5, 20) == 0


def test_longer_texts_raise_the_weight_of_the_mean() -> None:
    scores = OutOfFold(synthetic(0, 100, 1.0, (30, 90)), synthetic(1, 200, -0.5, (30, 90)))
    weights = [calibrate(scores, 0.025, 0.25, longest=longest).parameters.sum_weight for longest in (1, 1280, 5000)]
    assert weights[0] > weights[1] > weights[2]


def test_threshold_is_the_largest_quantile_over_lengths_and_rises_by_the_margin() -> None:
    scores = OutOfFold(synthetic(0, 100, 1.0, (30, 90)), synthetic(1, 200, -0.5, (30, 90)))
    low, high = calibrate(scores, 0.025, 0.0), calibrate(scores, 0.025, 0.25)
    samples = [statistics(padded(sample), low.parameters).double() for sample in at_lengths(scores.other)]
    assert low.threshold == max(float(sample.quantile(0.975)) for sample in samples)
    topic = statistics(padded([row[:20] for row in scores.topic]), low.parameters).double()
    expected = low.threshold + 0.25 * max(0.0, float(topic.quantile(0.25)) - low.threshold)
    assert high.threshold == pytest.approx(expected)
    assert low.parameters.drift * 16 == round(low.parameters.drift * 16)


def test_a_topic_that_scores_no_higher_is_refused() -> None:
    with pytest.raises(GuardrailError, match="forget"):
        calibrate(OutOfFold(synthetic(0, 50, -0.6, (30, 90)), synthetic(1, 50, -0.5, (30, 90))), 0.025, 0.0)


@pytest.mark.parametrize("hot", [0, 1])
def test_other_text_that_scores_alike_everywhere_has_a_gate_that_fires_on_the_topic_alone(hot) -> None:
    """No spread, or one row in 200 with a hot token: the variance of the means is then as good as 0."""
    other = [torch.full((40,), -0.5) for _ in range(200)]
    for row in other[:hot]:
        row[3] = 0.5
    topic = [torch.full((40,), 0.75) for _ in range(50)]
    found = calibrate(OutOfFold(topic, other), 0.025, 0.1)
    StatisticKwargs(**found.parameters._asdict())
    fired = [statistics(padded(some), found.parameters) > found.threshold for some in (topic, other)]
    assert fired[0].all()
    assert fired[1].sum() <= hot
