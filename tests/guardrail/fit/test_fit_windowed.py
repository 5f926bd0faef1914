"""A fit of the windowed statistic: on a model, saved and loaded, in several parts, and what it says in words."""

from functools import partial

import pytest
import torch
from fitting import FORGET, RETAIN, SAE, TOKENIZER, config_of, fires, fit, same_fit, tensors
from tiny_topic import topic_texts
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail, fit_guardrails
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures
from sae_unlearn.guardrail.fit.cross_calibration import LONGEST
from sae_unlearn.guardrail.fit.encoded_rows import EncodedRows
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, figures, fit_windowed, sentences


WINDOWED = {"statistic": "windowed", "num_gate_features": 12, "threshold_percentile": 97.5}


DIRECTION = WINDOWED | {"gate_reads": "direction"}


@pytest.fixture(scope="module")
def fitted():
    return fit(**WINDOWED)


@pytest.fixture(scope="module")
def along_direction():
    return fit(**DIRECTION)


@pytest.fixture(params=["fitted", "along_direction"])
def either(request):
    return request.getfixturevalue(request.param)


def test_the_gate_reads_features_of_its_own_and_clamps_the_others(fitted):
    config, parts = config_of(fitted), tensors(fitted)
    assert config.statistic == "windowed"
    assert len(config.feature_ids) == 5
    assert config.gate_feature_ids
    assert not {*config.feature_ids} & {*config.gate_feature_ids}
    assert len(config.feature_evidence) == config.num_encoded == len(parts["bias"])
    assert len(parts["dec"]) == len(parts["clamp"]) == 5
    assert min(config.feature_evidence) < 0 < max(config.feature_evidence)


def test_it_fires_on_the_topic_and_is_quiet_elsewhere(either):
    forget, retain = (fires(either, topic_texts(side, 24, seed=9)) for side in ("forget", "retain"))
    caught, alarms = (sum(f.fired for f in found) for found in (forget, retain))
    assert alarms < 3
    assert caught > alarms + 2  # rows of 15 tokens on a random model are hard to tell apart


def test_the_gate_on_the_model_computes_what_was_calibrated(fitted):
    """The statistic of a row on the model is that of its encoded tokens under the config's weights."""
    config = config_of(fitted)
    rows = [TOKENIZER(text).input_ids for text in FORGET[:6]]
    encoded, special = EncodedRows(SAE), torch.tensor(config.tokens.special_ids)
    for batch in residual_batches(base_model("llama"), rows, config.layer, 2):
        encoded.add(batch, batch.kept & ~torch.isin(batch.input_ids, special))
    corpus = encoded.corpus([*range(6)], config.tokens.outlier_norm)
    table = torch.zeros(SAE.d_sae)
    table[[*config.feature_ids, *config.gate_feature_ids]] = torch.tensor(config.feature_evidence)
    scores = corpus.tokens.split(corpus.tokens.scores(table, config.statistic_kwargs.bias))
    found = fires(fitted, FORGET[:6])
    assert [f.evidence for f in found] == [float(row.sum()) for row in scores]
    assert [f.tokens for f in found] == [len(row) for row in scores]


def test_saved_and_loaded_it_is_the_same(either, tmp_path):
    either.save_pretrained(tmp_path)
    loaded = attach_guardrail(base_model("llama"), tmp_path)
    same_fit(either, loaded)
    card = (tmp_path / "README.md").read_text()
    assert all(text in card for text in config_of(either).calibration["words"])
    assert ("direction of the residual stream" in card) == bool(config_of(either).gate_levels)
    texts = topic_texts("forget", 4, seed=5)
    assert [f.statistic for f in fires(either, texts)] == [f.statistic for f in fires(loaded, texts)]


@pytest.mark.parametrize(("name", "options"), [("fitted", WINDOWED), ("along_direction", DIRECTION)])
def test_several_topics_read_the_retain_text_once(name, options, request):
    both = fit_guardrails(
        base_model("llama"),
        TOKENIZER,
        SAE,
        {"one": FORGET},
        RETAIN,
        num_features=5,
        ratio_percentile=90.0,
        progress=False,
        **options,
    )
    alone, together = config_of(request.getfixturevalue(name)), config_of(both, "one")
    assert alone.gate_feature_ids == together.gate_feature_ids
    assert alone.threshold == together.threshold


def test_for_serving_holds_false_alarms_to_the_length_of_requests(fitted):
    weights = [config_of(fitted).statistic_kwargs.sum_weight]
    for length in (LONGEST, 20 * LONGEST):
        served = config_of(fit(**WINDOWED, for_serving=True, max_length=length))
        weights.append(served.statistic_kwargs.sum_weight)
    assert weights[0] == weights[1] > weights[2]


def test_the_fit_says_what_it_knows_in_words(fitted):
    found = config_of(fitted).calibration
    assert found["windowed"]["by_length"].keys() == {"all", "20", "40", "80", "160", "320"}
    share = found["windowed"]["by_length"]["all"]["forget"]
    assert share["n"] == len(FORGET)
    assert share["spread"][0] <= share["share"] <= share["spread"][1]
    assert found["auroc"] == found["windowed"]["auroc"]
    assert any("AUROC" in text for text in found["words"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "faithful"}, "windowed"),
        ({"sticky": False}, "windowed"),
        ({"evidence": "any"}, "evidence"),
        ({"num_gate_features": 0}, "num_gate_features"),
        ({"forget": FORGET[:5]}, "forget"),
        ({"features": [1, 2], "forget": None, "clamp_value": -3.0}, "forget"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, named):
    with pytest.raises(GuardrailError, match=named):
        fit(**WINDOWED | options)


def test_figures_are_shares_of_out_of_fold_rows():
    draw = torch.Generator().manual_seed(0)
    rows = [torch.rand(30, 40, generator=draw) < 0.1 for _ in range(80)]
    for row in rows[:32]:
        row[:, :5] |= torch.rand(30, 5, generator=draw) < 0.5
    corpora = [EncodedCorpus(ActiveFeatures.of(part), torch.arange(len(part))) for part in (rows[:32], rows[32:])]
    made = fit_windowed(*corpora, partial(fit_features, number=10), 0.025, 0.25, 8)
    found = figures(made)
    assert found["auroc"] > 0.95
    assert found["by_length"]["all"]["retain"]["share"] <= 0.05
    assert found["by_length"]["320"]["forget"]["n"] == 32
    assert len(sentences(found)) == 4
