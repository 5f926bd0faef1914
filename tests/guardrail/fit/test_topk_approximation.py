"""A guardrail on a plain TopK SAE: asked for by name, one threshold a feature, and its disagreement measured."""

import warnings

import pytest
import torch
from fitting import FORGET, RETAIN, config_of, fit, random_sae, tensors, token_rows
from zoo import BOS, base_model

from sae_unlearn import GuardrailError, SAEGuardrailConfig, attach_guardrail, search_guardrail
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.fit.topk_approximation import Disagreement, TopKThresholds


K = 12
SAE = random_sae(architecture="topk", k=K)


def quiet_fit(**kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(sae=SAE, topk="threshold", **kwargs)


@pytest.fixture(scope="module")
def fitted():
    return quiet_fit()


def content(texts, uses, cycle=4):
    """Residuals `[tokens, d_in]` after the guarded layer, of the documents with these numbers modulo the cycle."""
    rows = [row for i, row in enumerate(token_rows(texts)) if i % cycle in uses]
    return [b.residual[b.kept & (b.input_ids != BOS)] for b in residual_batches(base_model("llama"), rows, 1, 1)]


def test_it_has_to_be_asked_for_and_the_error_says_how():
    with pytest.raises(GuardrailError, match=r"\(k=12\).* topk='threshold'"):
        fit(sae=SAE)
    with pytest.raises(GuardrailError, match=r"topk=.*'jumprelu'"):
        fit(topk="threshold")
    with pytest.raises(GuardrailError, match="topk='whole'"):
        fit(sae=SAE, topk="whole")
    zero_shot = {"features": [1], "threshold": 0.5, "clamp_value": -5.0, "forget": None, "retain": None}
    with pytest.raises(GuardrailError, match=r"topk=.*`forget` and `retain`"):
        fit(sae=SAE, topk="threshold", **zero_shot)


def test_auto_asks_for_it_where_no_other_sae_is_published(monkeypatch):
    from sae_unlearn.guardrail.fit import fit as module

    monkeypatch.setattr(module, "sae_for", lambda sae, model, layer: SAE)
    with pytest.warns(UserWarning, match=r"sae='auto': only .*topk='threshold'"):
        guarded = fit(sae="auto")
    assert config_of(guarded).calibration["topk"]["rule"] == "threshold"
    with pytest.raises(GuardrailError, match=r"saes: .*fit_guardrail with topk='threshold'"):
        search_guardrail(base_model("llama"), None, [SAE], FORGET, RETAIN)


def test_a_config_alone_cannot_have_a_topk_sae():
    config = SAEGuardrailConfig(layer=1, feature_ids=[1, 2], threshold=0.5, clamp_value=-5.0)
    with pytest.raises(GuardrailError, match=r"fit_guardrail\(\.\.\., topk='threshold'\)"):
        attach_guardrail(base_model("llama"), config, sae=SAE)


def test_every_threshold_makes_its_feature_as_frequent_on_the_selection_rows_as_in_the_sae(fitted):
    tokens = torch.cat(content(FORGET, {0, 3}) + content(RETAIN, {0, 2}))
    ids, theta = config_of(fitted).feature_ids, tensors(fitted)["threshold"]
    pre, true = SAE.pre_activations(tokens)[:, ids], SAE.encode(tokens)[:, ids] > 0
    assert (pre > theta).sum(dim=0).tolist() == true.sum(dim=0).tolist()
    assert config_of(fitted).calibration["topk"]["tokens"] == len(tokens)


def test_the_threshold_lies_midway_between_the_last_token_that_counts_and_the_next():
    tokens = torch.cat(content(FORGET, {0, 1, 2, 3}))
    found = TopKThresholds(SAE, [7, 3])
    for block in tokens.split(50):
        found.add(block)
    pre, true = SAE.pre_activations(tokens), SAE.encode(tokens) > 0
    for theta, feature in zip(found.thresholds().tolist(), (7, 3), strict=True):
        ordered, n = pre[:, feature].sort(descending=True).values, int(true[:, feature].sum())
        assert 0 < n < len(tokens)
        assert theta == pytest.approx(max(0.0, float(ordered[n - 1] + ordered[n]) / 2), abs=1e-6)


def test_a_feature_of_every_token_has_threshold_0_and_one_of_none_is_refused():
    always = random_sae(architecture="topk", k=240)
    with torch.no_grad():
        always.b_enc[5], always.b_enc[6] = 1e3, -1e3
    tokens = torch.cat(content(FORGET, {0}))
    found = TopKThresholds(always, [5])
    found.add(tokens)
    assert found.thresholds().tolist() == [0.0]
    found = TopKThresholds(always, [5, 6])
    found.add(tokens)
    with pytest.raises(GuardrailError, match=rf"Features \[6\] .* {len(tokens)} tokens.*max_held_out"):
        found.thresholds()


def test_the_disagreement_is_that_of_the_report_rows(fitted):
    config, theta = config_of(fitted), tensors(fitted)["threshold"]
    for role, rows in (("forget", content(FORGET, {2})), ("retain", content(RETAIN, {3}))):
        found = config.calibration["topk"][role]
        each = [(SAE.encode(row)[:, [*config.feature_ids]] > 0, None) for row in rows]
        each = [(true, SAE.pre_activations(row)[:, [*config.feature_ids]] > theta)
                for (true, _), row in zip(each, rows, strict=True)]  # fmt: skip
        true, ours = (torch.cat(parts) for parts in zip(*each, strict=True))
        differs = (true != ours).double().mean(dim=0)
        assert found["tokens"] == len(true)
        assert found["feature_differs"] == pytest.approx(float(differs.mean()), abs=1e-6)
        assert found["worst_feature_differs"] == pytest.approx(float(differs.max()), abs=1e-6)
        assert found["agreement"] == pytest.approx(float((true & ours).sum() / (true | ours).sum()), abs=1e-4)
        hot = true.any(dim=-1), ours.any(dim=-1)
        assert found["hot_differs"] == pytest.approx(float((hot[0] != hot[1]).double().mean()), abs=1e-6)
        said = torch.tensor(config.feature_evidence)
        rho = [
            [float((part * said).sum()) / max(len(part), config.statistic_kwargs.min_tokens) for part in pair]
            for pair in each
        ]
        decided = [(a > config.threshold) != (b > config.threshold) for a, b in rho]
        assert (found["rows"], found["gate_differs"]) == (len(rows), pytest.approx(sum(decided) / len(rows), abs=1e-4))
        assert found["feature_differs"] > 0


def test_agreement_and_rates_by_hand():
    true = torch.tensor([[1, 0], [1, 0], [0, 0], [0, 1]]).bool()
    ours = torch.tensor([[1, 0], [0, 1], [0, 0], [0, 0]]).bool()
    fires = torch.tensor([[True, True], [True, False]])
    found = Disagreement.of(true[:1], ours[:1], *fires[:, :1]).plus(Disagreement.of(true[1:], ours[1:], *fires[:, 1:]))
    found = found.rates()
    assert (found["tokens"], found["rows"], found["gate_differs"]) == (4, 2, 0.5)
    assert (found["feature_differs"], found["worst_feature_differs"]) == (0.375, 0.5)
    assert (found["agreement"], found["hot"], found["hot_differs"]) == (0.25, 0.75, 0.25)
    assert Disagreement.none(2).rates()["agreement"] is None


def test_it_is_warned_about_when_fitted_and_in_the_card(tmp_path):
    with pytest.warns(UserWarning, match=r"\(k=12\).* \d+ tokens"):
        guarded = fit(sae=SAE, topk="threshold")
    first = config_of(guarded).calibration["warnings"][0]
    assert first.startswith("The features of this topk SAE (k=12) are approximated")
    guarded.save_pretrained(tmp_path)
    assert "The features of this topk SAE (k=12) are approximated" in (tmp_path / "README.md").read_text()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2**20


@pytest.mark.parametrize("fields", [{"architecture": "topk", "k": K}, {"threshold": 1.8}], ids=["topk", "jumprelu"])
def test_inputs_that_are_normalised_are_approximated_and_measured_as_well(fields):
    sae = random_sae(**fields, input_norm="layer")
    with pytest.raises(GuardrailError, match="pass topk='threshold'"):
        fit(sae=sae)
    config = SAEGuardrailConfig(layer=1, feature_ids=[1], threshold=0.5, clamp_value=-5.0)
    with pytest.raises(GuardrailError, match=r"fit_guardrail\(\.\.\., topk='threshold'\)"):
        attach_guardrail(base_model("llama"), config, sae=sae)
    with pytest.warns(UserWarning, match=r"threshold.* standard deviation"):
        guarded = fit(sae=sae, topk="threshold")
    found, layer = config_of(guarded), guard_layers(guarded)[0]
    _, encoder, decoder = layer.guardrail("default")
    tokens = torch.cat(content(FORGET, {0, 3}) + content(RETAIN, {0, 2}))
    std = float(tokens.std(dim=-1).median())
    assert found.calibration["topk"]["std"] == pytest.approx(std)
    ids = [*found.feature_ids]
    centred = sae.W_enc[:, ids] - sae.W_enc[:, ids].mean(dim=0)
    torch.testing.assert_close(encoder.weight, (centred / (std + 1e-5)).T)
    torch.testing.assert_close(decoder.weight, sae.W_dec[ids] * std)
    active = (encoder(tokens) > 0).sum(dim=0)
    assert active.tolist() == (sae.encode(tokens)[:, ids] > 0).sum(dim=0).tolist()
    report = torch.cat(content(FORGET, {2}))
    differs = float(((sae.encode(report)[:, ids] > 0) != (encoder(report) > 0)).double().mean())
    assert found.calibration["topk"]["forget"]["feature_differs"] == pytest.approx(differs, abs=1e-6)


def test_what_was_fitted_guards_after_it_was_loaded(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = attach_guardrail(base_model("llama"), tmp_path)
    changed = 0
    for row in token_rows(FORGET):
        ids = torch.tensor([row])
        with torch.no_grad():
            ours, theirs, base = (m(input_ids=ids).logits for m in (loaded, fitted, base_model("llama")))
        assert torch.equal(ours, theirs)
        changed += not torch.equal(ours, base)
    assert changed > len(FORGET) / 4


def test_the_thresholds_do_not_depend_on_the_batch_size(fitted):
    other = quiet_fit(batch_size=1)
    torch.testing.assert_close(tensors(other)["threshold"], tensors(fitted)["threshold"])
    assert config_of(other).calibration["topk"] == config_of(fitted).calibration["topk"]


def test_the_faithful_preset_measures_on_all_rows():
    found = config_of(quiet_fit(preset="faithful")).calibration
    tokens = found["corpora"]["forget"]["tokens"] - len(FORGET)  # BOS
    assert found["topk"]["forget"]["tokens"] == tokens
