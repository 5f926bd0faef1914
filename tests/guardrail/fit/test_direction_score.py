"""A gate that reads one direction of the residual stream: its score, its levels, and a fit with it."""

import copy

import pytest
import torch
from fitting import FORGET, SAE, TOKENIZER, config_of, fires, fit
from hypothesis import given
from hypothesis import strategies as st
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail.fit.direction_score import (
    HIGHEST,
    LEVELS,
    LOWEST,
    DirectionScore,
    ResidualTokens,
    fit_direction,
)
from sae_unlearn.guardrail.fit.encoded_rows import ResidualRows
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.summary import tokens_in_words
from sae_unlearn.guardrail.weights import GuardrailEncoder


DIRECTION = {"statistic": "windowed", "gate_reads": "direction", "threshold_percentile": 97.5}


@pytest.fixture(scope="module")
def fitted():
    return fit(**DIRECTION)


def joined_tokens(rows):
    """Rows `[tokens, d_in]` one after another, none of their tokens outlying."""
    residual = torch.cat([*rows])
    return ResidualTokens(
        torch.tensor([len(row) for row in rows]), residual, torch.ones(len(residual), dtype=torch.bool)
    )


def encoder_of(model):
    return guard_layers(model)[0].guardrail("default").encoder


def test_a_direction_that_differs_is_found_and_scores_are_quarters():
    draw = torch.Generator().manual_seed(0)
    topic, other = torch.randn(30, 50, 12, generator=draw), torch.randn(60, 50, 12, generator=draw) * 3 + 5
    topic = topic * 3 + 5
    topic[..., 4] += 3
    tokens = [joined_tokens([*part]) for part in (topic, other)]
    score = fit_direction(*tokens)
    assert int(score.direction.abs().argmax()) == 4
    found = [score.of(part) for part in tokens]
    assert torch.equal(found[1] * 4, (found[1] * 4).round())
    assert float(found[1].std()) == pytest.approx(1, abs=0.05)
    assert float(found[0].mean() - found[1].mean()) > 0.7


def test_outlying_tokens_move_neither_the_fit_nor_a_score():
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randn(40, 6, generator=draw) for _ in range(40)]
    topic, other = joined_tokens([row + 0.7 for row in rows[:16]]), joined_tokens(rows[16:])
    expected = fit_direction(topic, other)
    usual = torch.ones(len(other.residual), dtype=torch.bool)
    usual[::40] = False
    without, huge = (other._replace(usual=usual, residual=other.residual.clone()) for _ in range(2))
    huge.residual[::40] = 1e6
    assert torch.equal(fit_direction(topic, without).direction, fit_direction(topic, huge).direction)
    scores = expected.of(huge)
    assert not scores[::40].any()
    assert torch.equal(scores[1:40], expected.of(other)[1:40])


@given(st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=30), st.floats(-3, 3), st.floats(0.01, 1e3))
def test_levels_add_up_to_the_rounded_score(values, bias, norm):
    """In the encoder's own arithmetic, away from the edges, which it rounds in its own way."""
    score = DirectionScore(torch.tensor([0.5, 0.0]), bias)
    residual = torch.stack([torch.tensor(values), torch.ones(len(values))], dim=1)
    projected = residual.double() @ score.direction.double() + bias
    clear = ((projected * 4 - 0.5) - (projected * 4 - 0.5).round()).abs() > 1e-3
    rows, evidence = score.levels(norm)
    assert len(evidence) == len(rows.bias) == LEVELS
    torch.testing.assert_close(rows.weight.norm(dim=1), torch.full((LEVELS,), norm))
    assert (rows.threshold > 0).all()
    active = GuardrailEncoder.of(rows)(residual) != 0
    found = active.float() @ torch.tensor(evidence)
    expected = ((projected * 4).round() / 4).clamp(LOWEST, HIGHEST).float()
    assert torch.equal(found[clear], expected[clear])


def test_the_fit_leaves_the_clamped_features_to_the_sae(fitted):
    config, encoder = config_of(fitted), encoder_of(fitted)
    assert config.gate_levels == LEVELS
    assert config.gate_feature_ids is None
    assert config.feature_evidence[:5] == (0.0,) * 5
    assert config.num_encoded == 5 + LEVELS == len(encoder.bias) == len(config.feature_evidence)
    whole = SAE.slice(config.feature_ids)
    assert torch.equal(encoder.weight[:5], whole.W_enc.T)
    assert config.tokens.outlier_norm is not None
    assert any("direction" in words for words in tokens_in_words(config))


def test_the_gate_on_the_model_computes_what_was_calibrated(fitted):
    config, encoder = config_of(fitted), encoder_of(fitted)
    ids = [TOKENIZER(text).input_ids for text in FORGET[:6]]
    collected, special = ResidualRows(SAE.d_in), torch.tensor(config.tokens.special_ids)
    for batch in residual_batches(base_model("llama"), ids, config.layer, 2):
        collected.add(batch, batch.kept & ~torch.isin(batch.input_ids, special))
    tokens = collected.corpus([*range(6)], config.tokens.outlier_norm).tokens
    first, times = config.num_features, float(encoder.threshold[config.num_features]) * 8  # its edge is an eighth
    score = DirectionScore(encoder.weight[first] / times, float(encoder.bias[first]) / times)
    rows, found = tokens.split(score.of(tokens)), fires(fitted, FORGET[:6])
    assert [f.evidence for f in found] == [float(row.sum()) for row in rows]
    assert [f.tokens for f in found] == [len(row) for row in rows]


@pytest.mark.parametrize(
    "options", [{"statistic": "ratio"}, {"statistic": None, "evidence": "any"}, {"gate_reads": "x"}]
)
def test_it_goes_with_the_windowed_statistic_alone(options):
    with pytest.raises(GuardrailError, match="gate_reads"):
        fit(**DIRECTION | options)


def test_a_config_without_weights_is_refused(fitted):
    config = copy.deepcopy(config_of(fitted))
    config.clamp_value = -3.0
    with pytest.raises(GuardrailError, match="gate_levels"):
        attach_guardrail(base_model("llama"), config, sae=SAE)
