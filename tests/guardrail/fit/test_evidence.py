"""`evidence="log_ratio"`: a token counts as much as the features active there say for the topic."""

import json

import pytest
import torch
from tiny_topic import tiny_parts, topic_texts
from zoo import EOS, base_model, guarded, padded, planted_config, random_sae, token_ids

from sae_unlearn import (
    GuardrailError,
    GuardrailNotReady,
    attach_guardrail,
    detach_guardrail,
    fit_guardrail,
    record_firings,
)
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.fit.selection import FeatureSums, log_ratios
from sae_unlearn.guardrail.gate.decision import heard, hits_of


WEIGHTS = [0.25, 3.0, 1.5, 2.0, 0.75, 1.0]


def weighed(architecture, **fields):
    return guarded(architecture, **{"min_tokens": 4, "threshold": 1.0, "feature_evidence": WEIGHTS} | fields)


def facts(model, **inputs):
    with record_firings(model) as firings, torch.no_grad():
        model(**inputs)
    return [(f.statistic, f.fired, f.at_token, f.evidence, f.tokens) for f in firings]


def rows():
    return [token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15, 9, 5)]


def test_a_token_is_as_hot_as_the_features_active_there_say():
    a = torch.tensor([[0.0, 2.0, 3.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [torch.inf, 0, 0]])[None]
    eligible = torch.tensor([[True, True, True, False, True]])
    a = heard(a, eligible)
    found = hits_of(a, a != 0, torch.tensor([0.25, 1.5, 4.0]), eligible, planted_config(num_features=3))
    assert found[0, :4].tolist() == [5.5, 0.25, 0.0, 0.0]
    assert found[0, 4].isnan()


def test_the_statistic_is_the_mean_of_what_is_said():
    model, row = weighed("llama"), token_ids(1, 15, seed=3)
    encoder = guard_layers(model)[0].guardrail("default").encoder
    seen = []
    handle = encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    ((statistic, fired, _, said, tokens),) = facts(model, input_ids=row)
    handle.remove()
    expected = float(((seen[0] > 0) * torch.tensor(WEIGHTS)).sum())
    assert 0 < expected == said
    assert statistic == pytest.approx(expected / tokens)
    assert fired is (statistic > 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["sequence", "prefix"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mixtral"])
def test_a_batch_is_its_rows_bit_for_bit(architecture, scope):
    model = weighed(architecture, gate_scope=scope)
    expected = [facts(model, input_ids=row[None])[0] for row in rows()]
    assert len({fired for _, fired, *_ in expected}) == 2
    for side in ("left", "right"):
        assert facts(model, **padded(rows(), side)) == expected


def test_generation_with_a_cache_is_generation_without():
    model = weighed("llama", gate_scope="prefix")
    batch = padded(rows())
    told = []
    for use_cache in (True, False):
        with record_firings(model) as firings:
            text = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use_cache)
        told.append((text.tolist(), [(f.statistic, f.fired, f.evidence) for f in firings][-len(rows()) :]))
    assert told[0] == told[1]


def test_each_message_is_judged_by_itself_too():
    apart = weighed("llama", boundary_ids=[EOS])
    long, short = token_ids(1, 12, seed=1), token_ids(1, 9, seed=2)
    alone = [facts(weighed("llama"), input_ids=row)[0][0] for row in (long, short)]
    together = facts(apart, input_ids=torch.cat([long, torch.tensor([[EOS]]), short], dim=1))[0][0]
    assert together >= alone[0] > 0


@pytest.mark.slow
def test_compiled_in_one_graph_it_says_the_same():
    model, row = weighed("llama"), token_ids(2, 12)
    expected = model(input_ids=row).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(input_ids=row).logits, expected, atol=0, rtol=0)


def test_a_feature_of_weight_one_is_the_published_count():
    config = {"num_features": 1, "threshold": 0.2}
    plain = guarded("llama", **config)
    same = guarded("llama", feature_evidence=[1.0], **config)
    for row in rows():
        assert facts(same, input_ids=row[None]) == facts(plain, input_ids=row[None])


def test_the_weights_are_log_likelihood_ratios_in_quarters():
    sae = random_sae(d_sae=6)
    forget, retain = FeatureSums(sae), FeatureSums(sae)
    forget.tokens, retain.tokens = 98, 198
    forget.active = torch.tensor([9.0, 0, 98, 49, 1, 98], dtype=torch.float64)
    retain.active = torch.tensor([1.0, 100, 0, 99, 3, 198], dtype=torch.float64)
    # log of 10/100 : 2/200, 1/100 : 101/200, 99/100 : 1/200, 50/100 : 100/200, 2/100 : 4/200, 99/100 : 199/200
    assert log_ratios(forget, retain, list(range(6))) == [2.25, 0.25, 5.25, 0.25, 0.25, 0.25]


@pytest.fixture(scope="module")
def fitted():
    model, tokenizer, sae = tiny_parts()
    texts = topic_texts("forget", 40, seed=1), topic_texts("retain", 60, seed=2)
    return fit_guardrail(model, tokenizer, sae, *texts, evidence="log_ratio", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "evidence"),
    [
        ({}, "log_ratio"),
        ({"features": [1, 2]}, "log_ratio"),
        ({"threshold": 0.3}, "any"),
        ({"preset": "faithful"}, "any"),
        ({"forget": None, "features": [1, 2], "clamp_value": -5.0}, "any"),
    ],
)
def test_tokens_are_weighed_unless_a_number_by_hand_or_a_missing_corpus_stands_against_it(options, evidence):
    model, tokenizer, sae = tiny_parts()
    given = {"forget": topic_texts("forget", 40), "retain": topic_texts("retain", 60)}
    config = fit_guardrail(model, tokenizer, sae, progress=False, **given | options).peft_config["default"]
    assert (config.feature_evidence is None) == (evidence == "any")


def test_a_fit_weighs_features_by_its_own_counts(fitted, tmp_path):
    config = fitted.peft_config["default"]
    found = config.calibration["features"]
    rates = torch.tensor([found["density_forget"], found["density_retain"]], dtype=torch.float64)
    told = torch.tensor(config.feature_evidence)
    clear = (rates.amin(dim=0) > 0.02) & (rates[0] / rates[1] > 2)  # where one token more or less says little
    assert clear.any()
    assert ((rates[0] / rates[1]).log() - told)[clear].abs().max() < 0.5
    assert config.calibration["fire_rate_forget"]["rate"] > 0.5 > 0.2 > config.calibration["fire_rate_retain"]["rate"]
    fitted.save_pretrained(tmp_path)
    inputs = padded(rows())
    expected = facts(fitted, **inputs)
    again = attach_guardrail(tiny_parts()[0], tmp_path)
    assert again.peft_config["default"].feature_evidence == config.feature_evidence
    assert facts(again, **inputs) == expected
    assert "weighted by the evidence" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_evidence": [1.0] * 5}, "feature_evidence: expected 6 numbers"),
        ({"feature_evidence": [1.0] * 5 + [0.3]}, "feature_evidence=0.3"),
        ({"feature_evidence": [1.0] * 5 + [-1.0]}, "feature_evidence=-1.0"),
        ({"feature_evidence": [1.0] * 5 + [1e9]}, "feature_evidence=1000000000"),
        ({"feature_evidence": [1.0] * 5 + [float("nan")]}, "feature_evidence"),
        ({"feature_evidence": []}, r"feature_evidence=\(\)"),
        ({"feature_evidence": WEIGHTS, "threshold": 8.5}, "would never fire"),
    ],
)
def test_weights_that_are_none_are_refused(fields, message):
    with pytest.raises(GuardrailError, match=message):
        planted_config(**fields)


def test_one_weak_feature_is_enough_for_a_guardrail(tmp_path):
    weak = {"num_features": 1, "feature_evidence": [0.25], "threshold": 0.1}
    guarded("llama", **weak).save_pretrained(tmp_path)
    assert attach_guardrail(base_model("llama"), tmp_path).peft_config["default"].feature_evidence == (0.25,)


def test_without_weights_a_threshold_of_weighed_tokens_raises_and_the_folder_is_refused(tmp_path):
    model = weighed("llama", threshold=1.5)
    model.save_pretrained(tmp_path)
    model(input_ids=token_ids(1, 5))
    model.peft_config["default"].feature_evidence = None
    with pytest.raises(GuardrailNotReady, match=r"threshold=1\.5"):
        model(input_ids=token_ids(1, 5))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"feature_evidence": None}))
    with pytest.raises(GuardrailError, match=r"threshold=1\.5"):
        attach_guardrail(base_model("llama"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "faithful"}, "evidence=.log_ratio.: expected .any. with preset=.faithful."),
        (
            {"forget": None, "features": [1, 2], "threshold": 0.5, "clamp_value": -5.0},
            "needs `forget`",
        ),
        ({"features": [1, 2], "threshold": 1e6}, "outside"),
        ({"evidence": "weights"}, "evidence='weights'"),
    ],
)
def test_a_fit_that_cannot_weigh_is_refused(options, message):
    model, tokenizer, sae = tiny_parts()
    given = {"forget": topic_texts("forget", 40), "retain": topic_texts("retain", 60), "evidence": "log_ratio"}
    with pytest.raises(GuardrailError, match=message):
        fit_guardrail(model, tokenizer, sae, progress=False, **given | options)


def test_the_published_procedure_keeps_its_number_of_features():
    model, tokenizer, sae = tiny_parts()
    corpora = topic_texts("forget", 40), topic_texts("retain", 60)
    usual = fit_guardrail(model, tokenizer, sae, *corpora, ratio_percentile=95.0, progress=False)
    assert usual.peft_config["default"].num_features == 40
    detach_guardrail(usual)
    faithful = fit_guardrail(model, tokenizer, sae, *corpora, preset="faithful", progress=False)
    assert faithful.peft_config["default"].num_features == 20
