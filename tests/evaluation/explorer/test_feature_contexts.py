"""Top contexts of guarded features, against a reading of everything at once."""

import pytest
import torch
from tiny_topic import LAYER, tiny_parts, topic_texts
from zoo import BOS

from sae_unlearn import GuardrailError, fit_guardrail, fit_guardrails, list_guardrails, record_firings
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import feature_contexts
from sae_unlearn.evaluation.explorer.feature_contexts import token_pieces


TEXTS = {"forget": topic_texts("forget", 21, seed=3), "retain": topic_texts("retain", 17, seed=3)}
TOP, AROUND = 4, 3


@pytest.fixture(scope="module")
def parts():
    model, tokenizer, sae = tiny_parts()
    texts = topic_texts("forget", 40), topic_texts("retain", 80)
    guarded = fit_guardrail(model, tokenizer, sae, *texts, statistic="ratio", progress=False)
    return guarded, tokenizer, sae


@pytest.fixture(scope="module")
def found(parts):
    guarded, tokenizer, _ = parts
    return feature_contexts(guarded, tokenizer, **TEXTS, contexts=TOP, around=AROUND, batch_size=5, progress=False)


@pytest.fixture(scope="module")
def everything(parts):
    """By role, each row's activations `[seq, N]` by the whole SAE on a model of its own, 0 at BOS, one row a pass."""
    guarded, tokenizer, sae = parts
    model, ids = tiny_parts()[0], [*guarded.peft_config["default"].feature_ids]
    read = {}
    for role, texts in TEXTS.items():
        read[role] = []
        for batch in residual_batches(model, tokenizer(texts).input_ids, LAYER, 1, bucket=1):
            a = sae.encode(batch.residual[0])[:, ids]
            read[role].append(a.where((batch.input_ids[0] != BOS)[:, None], 0))
    return read


def test_contexts_are_those_of_the_highest_peaks_of_all(found, everything):
    for place, feature in enumerate(found.features):
        peaks = sorted(
            ((float(a[:, place].max()), role, n) for role, rows in everything.items() for n, a in enumerate(rows)),
            key=lambda one: -one[0],
        )
        expected = [one for one in peaks[:TOP] if one[0] > 0]
        got = [(c.activations[c.peak], c.role, c.document) for c in feature.contexts]
        assert [one[0] for one in got] == pytest.approx([one[0] for one in expected], abs=1e-4)
        assert {one[1:] for one in got} == {one[1:] for one in expected}


def test_a_context_is_the_text_around_its_peak_token_by_token(found, everything):
    for place, feature in enumerate(found.features):
        for context in feature.contexts:
            words = ["<bos>", *TEXTS[context.role][context.document].split()]
            row = everything[context.role][context.document][:, place]
            peak = int(row.argmax())
            start, end = max(0, peak - AROUND), peak + AROUND + 1
            assert [token.strip() for token in context.tokens] == words[start:end]
            assert context.activations == pytest.approx(row[start:end].tolist(), abs=1e-4)
            assert context.peak == peak - start
            assert context.cut == (start > 0, end < len(words))


def test_densities_and_scores_are_over_all_content_tokens(parts, found, everything):
    for role, rows in everything.items():
        tokens = torch.cat([row[1:] for row in rows])
        assert found.tokens[role] == len(tokens)
        assert found.documents[role] == len(TEXTS[role])
        for place, feature in enumerate(found.features):
            assert feature.density[role] == pytest.approx(float((tokens[:, place] > 0).double().mean()))
            assert feature.mean_squared[role] == pytest.approx(float(tokens[:, place].square().mean()), rel=1e-4)
    first = found.features[0]
    assert first.ratio == pytest.approx(first.mean_squared["forget"] / first.mean_squared["retain"])
    assert [feature.feature for feature in found.features] == [*parts[0].peft_config["default"].feature_ids]


def test_statistics_are_those_of_the_gate(found, everything, parts):
    config = parts[0].peft_config["default"]
    for role, rows in everything.items():
        said = [float(((row > 0) * torch.tensor(config.feature_evidence)).sum()) for row in rows]
        least = config.statistic_kwargs.min_tokens
        mean = [total / max(len(row) - 1, least) for total, row in zip(said, rows, strict=True)]
        assert found.statistics[role] == pytest.approx(mean, abs=1e-6)


def test_statistics_of_the_windowed_gate_read_its_own_features(parts):
    _, tokenizer, sae = parts
    model = tiny_parts()[0]
    fitted = fit_guardrail(model, tokenizer, sae, topic_texts("forget", 40), topic_texts("retain", 80), progress=False)
    config = fitted.peft_config["default"]
    assert config.statistic == "windowed"
    read = feature_contexts(fitted, tokenizer, **TEXTS, contexts=TOP, around=AROUND, batch_size=5, progress=False)
    for role, texts in TEXTS.items():
        with record_firings(fitted) as firings, torch.no_grad():
            for text in texts:
                fitted(**tokenizer(text, return_tensors="pt"))
        assert read.statistics[role] == pytest.approx([firing.statistic for firing in firings], abs=1e-6)


def test_batches_and_a_guardrail_in_force_change_nothing(parts, found):
    guarded, tokenizer, _ = parts
    again = feature_contexts(guarded, tokenizer, **TEXTS, contexts=TOP, around=AROUND, batch_size=1, progress=False)
    for one, other in zip(found.features, again.features, strict=True):
        assert [(c.role, c.document, c.tokens) for c in one.contexts] == [
            (c.role, c.document, c.tokens) for c in other.contexts
        ]
    assert [one.active for one in list_guardrails(guarded)] == [True]


def test_one_side_is_enough_and_none_is_refused(parts):
    guarded, tokenizer, _ = parts
    alone = feature_contexts(guarded, tokenizer, retain=TEXTS["retain"], progress=False)
    assert {c.role for feature in alone.features for c in feature.contexts} == {"retain"}
    assert alone.features[0].ratio is None
    with pytest.raises(GuardrailError, match="forget=None, retain=None"):
        feature_contexts(guarded, tokenizer)
    with pytest.raises(GuardrailError, match=r"^forget: .*got none"):
        feature_contexts(guarded, tokenizer, forget=[], progress=False)
    with pytest.raises(UnlearnError, match="contexts=0"):
        feature_contexts(guarded, tokenizer, **TEXTS, contexts=0)


def test_of_several_guardrails_one_is_named():
    model, tokenizer, sae = tiny_parts()
    with pytest.raises(GuardrailError, match=r"^model: .*LlamaForCausalLM"):
        feature_contexts(model, tokenizer, **TEXTS)
    topics = {"first": topic_texts("forget", 40), "second": topic_texts("forget", 40, seed=5)}
    guarded = fit_guardrails(model, tokenizer, sae, topics, topic_texts("retain", 80), progress=False)
    with pytest.raises(GuardrailError, match=r"adapter_name=None: .*\['first', 'second'\]"):
        feature_contexts(guarded, tokenizer, **TEXTS)
    with pytest.raises(GuardrailError, match="adapter_name='third'"):
        feature_contexts(guarded, tokenizer, **TEXTS, adapter_name="third")
    found = feature_contexts(guarded, tokenizer, **TEXTS, adapter_name="second", progress=False)
    assert [feature.feature for feature in found.features] == [*guarded.peft_config["second"].feature_ids]


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, **options):
        return bytes(ids).decode(errors="replace")


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    ids = list("aé€b".encode())
    pieces = token_pieces(Bytes(), ids)
    assert pieces == ["a", "", "é", "", "", "€", "b"]
    assert "".join(token_pieces(Bytes(), ids[:-2])) == bytes(ids[:-2]).decode(errors="replace")
