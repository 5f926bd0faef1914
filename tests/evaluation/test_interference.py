"""What several guardrails do to each other: gates on each other's text, and edits alone and together."""

import pytest
import torch
from tiny_topic import WORDS, tiny_parts, topic_texts

from sae_unlearn import GuardrailError, enable_guardrails, fit_guardrails, list_guardrails, save_bundle
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Report, interference, row_losses
from sae_unlearn.evaluation.metrics.firing import row_firings


HELD_OUT = {"first": topic_texts("forget", 10, seed=3), "second": topic_texts("retain", 10, seed=4)}
OTHER = topic_texts("retain", 8, seed=8)


@pytest.fixture(scope="module")
def parts():
    model, tokenizer, sae = tiny_parts()
    topics = {"first": topic_texts("forget", 40), "second": [f"{t} w2 w3 w4" for t in topic_texts("retain", 40)]}
    retain = [" ".join(f"w{i}" for i in range(40 + n % 7, 54 + n % 7)) for n in range(64)]
    guarded = fit_guardrails(model, tokenizer, sae, topics, retain, statistic="ratio", progress=False)
    return guarded, tokenizer


@pytest.fixture(scope="module")
def report(parts):
    return interference(*parts, HELD_OUT, OTHER, progress=False)


def value(report, metric, data):
    return report.find(metric, "retain" if data == "retain" else "forget", data).estimate.value


def test_it_holds_every_gate_on_every_set(parts, report):
    model, tokenizer = parts
    for data, texts in {**HELD_OUT, "retain": OTHER}.items():
        fired = row_firings(model, tokenizer, texts, batch_size=4)
        for name in HELD_OUT:
            assert value(report, f"fires:{name}", data) == pytest.approx(float(fired[name].double().mean()))
    assert value(report, "fires:first", "first") > value(report, "fires:first", "retain")


def test_the_edits_are_measured_alone_and_together(parts, report):
    model, tokenizer = parts
    losses = {}
    for names in ((), ("first",), ("second",), ("first", "second")):
        enable_guardrails(model, names)
        losses[names] = row_losses(model, tokenizer, HELD_OUT["first"], batch_size=4).mean()
    enable_guardrails(model, ["first", "second"])
    assert value(report, "loss:first", "first") == pytest.approx(float(losses["first",] - losses[()]), abs=1e-5)
    assert value(report, "loss:second", "first") == pytest.approx(float(losses["second",] - losses[()]), abs=1e-5)
    both = losses["first", "second"]
    assert value(report, "loss:together", "first") == pytest.approx(float(both - losses[()]), abs=1e-5)
    assert value(report, "interference", "first") == pytest.approx(float(both - losses["first",]), abs=1e-5)
    assert value(report, "loss:first", "first") != 0
    with pytest.raises(UnlearnError):
        value(report, "interference", "retain")


def test_what_was_in_force_is_again(parts):
    model, tokenizer = parts
    enable_guardrails(model, "second")
    try:
        interference(model, tokenizer, {"first": HELD_OUT["first"][:2]}, progress=False)
        assert [s.name for s in list_guardrails(model) if s.active] == ["second"]
    finally:
        enable_guardrails(model, ["first", "second"])


@pytest.mark.slow
def test_it_is_a_report_for_the_card_of_a_bundle(parts, report, tmp_path):
    save_bundle(parts[0], tmp_path, evaluation=report)
    card = (tmp_path / "README.md").read_text()
    assert "### Guardrails together" in card
    assert "change of loss, nats per token (together)" in card
    assert Report.load(tmp_path / "evaluation").find("interference", "forget", "first")
    assert not any(word in card for word in (f" w{i} " for side in WORDS.values() for i in side))


def test_what_is_not_there_is_refused(parts):
    model, tokenizer = parts
    with pytest.raises(GuardrailError, match=r"forget='third': .*\['first', 'second'\]"):
        interference(model, tokenizer, {"third": ["w3"]})
    with pytest.raises(GuardrailError, match="forget=None"):
        interference(model, tokenizer, {})
    with pytest.raises(UnlearnError, match=r"forget\['first'\]=\[\]"):
        interference(model, tokenizer, {"first": []})


def test_a_set_that_refuses_is_measured_by_what_it_clamps(parts):
    model, tokenizer = parts
    before = row_losses(model, tokenizer, HELD_OUT["first"], batch_size=4)
    for config in model.peft_config.values():
        config.action, config.refusal_ids = "refuse", [40, 41, 96]
    try:
        for batch_size in (1, 4):
            assert torch.allclose(
                row_losses(model, tokenizer, HELD_OUT["first"], batch_size=batch_size), before, atol=1e-5
            )
    finally:
        for config in model.peft_config.values():
            config.action = "clamp"
