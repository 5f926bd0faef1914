"""What a metric is given beside its rows: built and checked once."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_parts, topic_texts
from zoo import EOS, base_model, guarded, logits_of, token_ids

from sae_unlearn import fit_guardrail, set_action
from sae_unlearn.backbone.logits import are_measured, wanted_logits
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Choice, Fact, evaluate
from sae_unlearn.evaluation.measurement import Measurement
from sae_unlearn.options.evaluation import MeasurementConfig


SETTINGS = MeasurementConfig(progress=True)
IDS = token_ids(2, 6)


def measurement(model, **given):
    return Measurement(**{"model": model, "tokenizer": None, "settings": SETTINGS} | given)


def lora():
    return get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: base_model("llama"), (False, False, False)),
        (lora, (False, True, True)),
        (lambda: guarded("llama"), (True, True, True)),
        (lambda: guarded("llama").base_model.model, (True, True, False)),  # KL needs a PeftModel, or the base
    ],
    ids=["plain", "LoRA", "guardrail", "guardrail without PeftModel"],
)
def test_it_says_what_can_be_measured_of_a_model(make, facts):
    it = measurement(make())
    assert (it.guarded, it.has_base, it.compares) == facts
    compared = measurement(make(), base=base_model("llama"))
    assert (compared.has_base, compared.compares) == (True, True)


@pytest.mark.parametrize("make", [lora, lambda: guarded("llama", threshold=0.0)])
def test_the_base_model_is_the_given_one_or_the_model_without_its_adapters(make):
    model, base = make(), base_model("llama")
    with measurement(model).base_model() as found:
        assert found is model
        assert torch.equal(logits_of(found, IDS), logits_of(base, IDS))
    assert not torch.equal(logits_of(model, IDS), logits_of(base, IDS))
    with measurement(model, base=base).base_model() as found:
        assert found is base
    with pytest.raises(UnlearnError, match="base=None"), measurement(base).base_model():
        pass


def test_another_model_is_measured_in_the_same_way_and_with_the_same_notes():
    it = measurement(guarded("llama"), base=base_model("llama"))
    other = it.of(base_model("llama"))
    assert (other.guarded, other.base, other.settings.progress) == (False, it.base, False)
    other.notes.append("left out")
    assert it.notes == ["left out"]


@pytest.mark.parametrize(
    ("given", "subject", "kind"),
    [({"model": "a model"}, "model", "str"), ({"base": 3}, "model", "int"), ({"settings": {}}, "settings", "dict")],
)
def test_what_is_none_is_refused(given, subject, kind):
    with pytest.raises(UnlearnError, match=f"got {kind}") as caught:
        measurement(**{"model": base_model("llama")} | given)
    assert caught.value.subject == subject


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("last", [False, True])
def test_probabilities_under_a_refusal_are_those_of_the_clamp(name, last):
    """They are measured at any positions, and no message is written there."""
    refusing = {"action": "refuse", "refusal": "no", "refusal_ids": [40, EOS]}
    clamps, refuses = (guarded(name, threshold=0.0, **action) for action in ({}, refusing))
    ids = token_ids(3, 9)
    kept = torch.ones_like(ids).bool()
    kept[1, 6:] = False
    wanted = kept & (torch.arange(9) > 2)
    wanted[:, -1] = last
    with torch.no_grad():
        expected = wanted_logits(clamps, ids, kept, wanted)
        assert not torch.equal(expected, wanted_logits(base_model(name), ids, kept, wanted))
        assert torch.equal(wanted_logits(refuses, ids, kept, wanted), expected)
        assert not are_measured()
        assert refuses(input_ids=ids).logits[:, -1].argmax(-1).eq(40).all()


def test_a_model_that_refuses_is_evaluated():
    model, tokenizer, sae = tiny_parts()
    topic, other = topic_texts("forget", 24), topic_texts("retain", 40)
    model = fit_guardrail(model, tokenizer, sae, topic, other, progress=False)
    choice = Choice(topic[0], ("w3", "w4"), right=1, shown=False)
    rows = {"facts": [Fact(topic[1], ("w3",), subject="w2")], "choices": [choice], "texts": topic[:4]}
    clamped = evaluate(model, tokenizer, rows, progress=False)
    set_action(model, "refuse", message="w9 w8", tokenizer=tokenizer)
    refused = evaluate(model, tokenizer, rows, progress=False)
    assert any(figure.metric.startswith("fires") and figure.estimate.value > 0 for figure in refused.figures)
    of = ("texts", "choices")
    same = [[(f.metric, f.estimate) for f in report.figures if f.data in of] for report in (clamped, refused)]
    assert len(same[0]) > 3
    assert same[0] == same[1]
