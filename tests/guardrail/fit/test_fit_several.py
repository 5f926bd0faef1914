"""Several topics fitted over one pass of the retain text, each as if it were alone."""

import pytest
import torch
from tiny_topic import tiny_parts, topic_texts
from zoo import token_ids

from sae_unlearn import GuardrailError, fit_guardrail, fit_guardrails, list_guardrails
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.fit.passes import DOSE_DOCUMENTS, FitPasses


TOPICS = {"first": topic_texts("forget", 40), "second": topic_texts("forget", 48, seed=5, words=9)}
RETAIN = topic_texts("retain", 64)


def tensors(model, name):
    layer = next(x for x in guard_layers(model) if name in x.guard_config)
    _, *parts = layer.guardrail(name)
    return [tensor for part in parts for tensor in part.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "faithful"},
        {"num_features": 7},
        {"statistic": "windowed", "num_gate_features": 12},
        {"for_serving": True},
    ],
)
def test_each_topic_gets_the_guardrail_that_it_would_get_alone(options):
    model, tokenizer, sae = tiny_parts()
    together = fit_guardrails(model, tokenizer, sae, TOPICS, RETAIN, progress=False, **options)
    assert [s.name for s in list_guardrails(together) if s.active] == ["first", "second"]
    for name, texts in TOPICS.items():
        alone = fit_guardrail(tiny_parts()[0], tokenizer, sae, texts, RETAIN, progress=False, **options)
        expected, found = alone.peft_config["default"], together.peft_config[name]
        assert found.feature_ids == expected.feature_ids
        assert found.threshold == expected.threshold
        assert found.calibration == expected.calibration
        assert all(torch.equal(a, b) for a, b in zip(tensors(together, name), tensors(alone, "default"), strict=True))


@pytest.mark.parametrize("statistic", ["ratio", "windowed"])
def test_every_retain_row_is_run_once(monkeypatch, statistic):
    seen = []
    run = FitPasses.run

    def counted(self, rows, title, total, *parts):
        for batch in run(self, rows, title, total, *parts):
            seen.append((title.split(":")[0], len(batch.index)))
            yield batch

    monkeypatch.setattr(FitPasses, "run", counted)
    fit_guardrails(*tiny_parts(), TOPICS, RETAIN, statistic=statistic, progress=False)
    assert sum(n for role, n in seen if role == "retain") == len(RETAIN)
    again = sum(min(DOSE_DOCUMENTS, len(texts)) for texts in TOPICS.values()) if statistic == "windowed" else 0
    assert sum(n for role, n in seen if role == "forget") == sum(map(len, TOPICS.values())) + again


def test_retain_text_that_can_be_read_only_once_is_enough():
    together = fit_guardrails(*tiny_parts(), TOPICS, iter(RETAIN), progress=False)
    assert len(list_guardrails(together)) == 2


def test_what_cannot_be_fitted_names_its_topic_and_leaves_the_model():
    model, tokenizer, sae = tiny_parts()
    ids = token_ids(4, 8)
    with torch.no_grad():
        plain = model(ids).logits
    for topics, options, message in (
        ({}, {}, "mapping"),
        (["text"], {}, "mapping"),
        (TOPICS | {"empty": []}, {}, "empty: forget: expected at least 8"),
        (TOPICS, {"adapter_name": "x"}, "adapter_name='x'"),
        (TOPICS, {"feature_count": 3}, "'feature_count'"),
        (TOPICS, {"num_features": 0}, "num_features=0"),
        ({"a.b": TOPICS["first"]}, {}, r"a\.b: adapter_name"),
    ):
        with pytest.raises(GuardrailError, match=message):
            fit_guardrails(model, tokenizer, sae, topics, RETAIN, progress=False, **options)
    assert not guard_layers(model)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain)


def test_a_refusal_can_be_fitted():
    model, tokenizer, sae = tiny_parts()
    told = {"action": "refuse", "refusal": "w90 w91", "threshold_percentile": 50.0}
    guarded = fit_guardrail(model, tokenizer, sae, TOPICS["first"], RETAIN, **told, progress=False)
    config = guarded.peft_config["default"]
    assert (config.action, config.refusal_ids) == ("refuse", (90, 91, 96))
    ids = torch.tensor(tokenizer(topic_texts("forget", 1, seed=3)).input_ids)
    found = guarded.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=96, pad_token_id=0)
    assert found[0, ids.shape[1] :].tolist() == [90, 91, 96]
