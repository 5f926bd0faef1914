"""Features are selected on rows of their own and summed in full precision; the rows put aside have no part in it."""

import copy

import pytest
import torch
import zoo
from fitting import FORGET, RETAIN, SAE, config_of, fit, same_fit, token_rows
from zoo import BOS, base_model

from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail.fit.selection import FeatureSums


def test_rows_put_aside_are_bounded_and_the_rest_goes_to_the_selection():
    calibration = config_of(fit(max_held_out=8)).calibration["corpora"]
    assert calibration["retain"]["threshold_rows"] == 8
    assert calibration["retain"]["report_rows"] == 8
    assert calibration["retain"]["selection_rows"] == 32
    assert calibration["forget"] == {
        "documents": 32,
        "rows": 32,
        "tokens": sum(map(len, token_rows(FORGET))),
        "selection_rows": 16,
        "threshold_rows": 8,
        "report_rows": 8,
    }


def test_report_rows_have_no_part_in_features_or_threshold():
    """Other text in the documents that are kept for the report changes what is reported, and nothing else."""
    forget = [RETAIN[i] if i % 4 == 2 else text for i, text in enumerate(FORGET)]
    retain = [FORGET[i % 32] if i % 4 == 3 else text for i, text in enumerate(RETAIN)]
    for evidence in ("any", "log_ratio"):
        clean, poisoned = fit(evidence=evidence), fit(forget=forget, retain=retain, evidence=evidence)
        same_fit(clean, poisoned)
        before, after = config_of(clean).calibration, config_of(poisoned).calibration
        assert before["statistic_threshold_rows"] == after["statistic_threshold_rows"]
        if evidence == "any":
            assert before["fire_rate_forget"]["rate"] > after["fire_rate_forget"]["rate"]
            assert before["fire_rate_retain"]["rate"] < after["fire_rate_retain"]["rate"]
        assert sum(before["statistic_forget"]) > sum(after["statistic_forget"])
        assert sum(before["statistic_retain"]) < sum(after["statistic_retain"])


def test_the_selection_rows_figures_of_the_features_are_recorded(usual):
    config = config_of(usual)
    found = config.calibration["features"]
    for role, texts, uses in (("forget", FORGET, (0, 3)), ("retain", RETAIN, (0, 2))):
        rows = [row for i, row in enumerate(token_rows(texts)) if i % 4 in uses]
        batches = residual_batches(base_model("llama"), rows, 1, 8)
        tokens = torch.cat([batch.residual[batch.kept & (batch.input_ids != BOS)] for batch in batches])
        a = SAE.encode(tokens)[:, [*config.feature_ids]].double()
        density = (a > 0).double().mean(dim=0)
        assert found[f"score_{role}"] == pytest.approx(a.square().mean(dim=0).tolist(), rel=1e-4)
        assert found[f"density_{role}"] == pytest.approx(density.tolist(), rel=1e-4)
        assert found[f"mean_active_{role}"] == pytest.approx((a.mean(dim=0) / density).nan_to_num().tolist(), rel=1e-4)
    assert found["score_forget"] == sorted(found["score_forget"], reverse=True)


def test_threshold_rows_have_no_part_in_the_features(usual):
    retain = [FORGET[i % 32] if i % 4 == 1 else text for i, text in enumerate(RETAIN)]
    poisoned = fit(retain=retain, threshold_percentile=50.0)
    assert config_of(poisoned).feature_ids == config_of(usual).feature_ids
    assert config_of(poisoned).threshold != config_of(usual).threshold


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_sae_in_half_precision_is_summed_in_full_precision(dtype):
    """Activations above 255, as large models have them, whose squares are more than float16 holds."""
    sums, halves = FeatureSums(SAE), FeatureSums(copy.deepcopy(SAE).to(dtype))
    tokens = 1000 * torch.randn(500, zoo.WIDTH, generator=torch.Generator().manual_seed(0))
    for each in (sums, halves):
        each.add(tokens)
    for name, total in sums.state().items():
        torch.testing.assert_close(halves.state()[name], total, rtol=0.01, atol=50.0)
