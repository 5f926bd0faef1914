"""The gate's threshold, from rows put aside, and the statistics that are reported of it."""

import pytest
import torch
from fitting import FORGET, RETAIN, config_of, fit, random_sae, token_rows

from sae_unlearn import record_firings
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.guardrail.fit.calibration import between


def test_given_features_are_calibrated_on_retain_text():
    chosen = config_of(fit()).feature_ids
    model = fit(features=chosen)
    assert config_of(model).feature_ids == chosen
    assert config_of(model).threshold == config_of(fit()).threshold


@pytest.mark.parametrize("scope", ["sequence", "prefix"])
@pytest.mark.parametrize("statistic", [name for name in CHOICES["statistic"] if name != "windowed"])  # out of fold
def test_the_reported_statistics_are_what_the_gate_then_finds(statistic, scope):
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(4.0)  # few hot tokens
    model = fit(sae=sae, num_features=3, threshold_percentile=75.0, statistic=statistic, gate_scope=scope)
    held_out = [row for i, row in enumerate(token_rows(RETAIN)) if i % 4 == 3]
    with record_firings(model) as firings, torch.no_grad():
        for row in held_out:
            model(input_ids=torch.tensor([row]))
    reported = config_of(model).calibration
    rate = sum(f.fired for f in firings) / len(held_out)
    assert reported["fire_rate_retain"]["rate"] == pytest.approx(rate, abs=1e-4)
    assert reported["fire_rate_retain"]["n"] == len(held_out) == 12
    if scope == "sequence":
        assert reported["statistic_retain"] == pytest.approx([f.statistic for f in firings], abs=1e-4)


def test_the_threshold_is_the_percentile_of_the_retain_rows_put_aside():
    for percentile in (25.0, 50.0, 90.0):
        calibration = config_of(fit(threshold_percentile=percentile, margin=0.0)).calibration
        rows = torch.tensor(calibration["statistic_threshold_rows"], dtype=torch.float64)
        assert len(rows) == 12
        assert calibration["threshold"] == pytest.approx(float(rows.quantile(percentile / 100)), abs=1e-4)


@pytest.mark.parametrize("margin", [0.25, 0.75])
def test_the_margin_moves_the_threshold_towards_the_lower_quartile_of_the_forget_rows_put_aside(margin):
    low, moved = (config_of(fit(threshold_percentile=50.0, margin=share)).threshold for share in (0.0, margin))
    model = fit()
    with record_firings(model) as firings, torch.no_grad():
        for i, row in enumerate(token_rows(FORGET)):
            if i % 4 == 1:
                model(input_ids=torch.tensor([row]))
    quartile = float(torch.tensor([f.statistic for f in firings], dtype=torch.float64).quantile(0.25))
    assert low < quartile
    assert moved == pytest.approx(low + margin * (quartile - low), abs=1e-6)


def test_a_topic_below_other_text_leaves_the_threshold_where_it_was():
    high = torch.tensor([0.1, 0.25, 0.3, 0.5, 0.9])
    assert between(0.5, high, 0.5) == 0.5
    assert between(0.2, high, 0.5) == pytest.approx(0.2 + 0.5 * (0.25 - 0.2))
    assert between(0.2, torch.zeros(0), 0.5) == 0.2


@pytest.mark.parametrize(("preset", "percentile", "margin"), [(None, 97.5, 0.25), ("faithful", 95.0, 0.0)])
def test_the_default_percentile_and_margin_of_the_threshold(preset, percentile, margin):
    usual, said = (
        config_of(fit(num_features=1, preset=preset, **given)).calibration
        for given in ({"threshold_percentile": None}, {"threshold_percentile": percentile, "margin": margin})
    )
    assert (usual["threshold_percentile"], usual["threshold_margin"]) == (percentile, margin)
    assert usual["threshold"] == said["threshold"]
