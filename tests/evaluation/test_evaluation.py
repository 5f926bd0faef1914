"""Loss, recall and intervals: against plain transcriptions, and whatever the batch."""

import pytest
import torch
from lettered_words import lettered_tokenizer
from tiny_topic import tiny_parts, tiny_tokenizer, topic_texts
from tokenizers import processors
from zoo import BOS, EOS, base_model

from sae_unlearn import UnlearnError, fit_guardrail, record_firings
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.tokens import prompt_ids
from sae_unlearn.evaluation import (
    Choice,
    Fact,
    answer_likelihoods,
    bootstrap_interval,
    candidate_log_probs,
    complete,
    evaluate,
    recall,
    row_losses,
)
from sae_unlearn.evaluation.audit.attacks import relearning_attack
from sae_unlearn.evaluation.audit.attacks.splitting import converse
from sae_unlearn.evaluation.metrics.recall import is_right


TEXTS = [*topic_texts("forget", 3), *topic_texts("retain", 4, words=5), "w3 w4"]


def plain_loss(model, tokenizer, text):
    """One text at a time, all logits, one token after the other."""
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    found = [-logits[t].log_softmax(dim=0)[ids[t + 1]] for t in range(len(ids) - 1)]
    return float(torch.stack(found).mean())


# falcon_h1 multiplies its logits after the head, gpt2 ties it to the embedding; gemma2 squashes its logits
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon_h1"])
def test_loss_is_the_plain_one(name):
    model, tokenizer = base_model(name), tiny_tokenizer()
    expected = torch.tensor([plain_loss(model, tokenizer, text) for text in TEXTS])
    torch.testing.assert_close(row_losses(model, tokenizer, TEXTS).float(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_loss_does_not_depend_on_the_batch(batch_size):
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    whole = row_losses(model, tokenizer, TEXTS, batch_size=4)
    torch.testing.assert_close(row_losses(model, tokenizer, TEXTS, batch_size=batch_size), whole, atol=1e-5, rtol=1e-5)
    turned = row_losses(model, tokenizer, TEXTS[::-1], batch_size=batch_size)
    torch.testing.assert_close(turned.flip(0), whole, atol=1e-5, rtol=1e-5)


def test_loss_leaves_special_tokens_out():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    ids = tokenizer("w3 w4 <eos> w5").input_ids
    assert ids == [BOS, 3, 4, EOS, 5]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    wanted = [(0, 3), (1, 4), (3, 5)]
    expected = -sum(logits[t].log_softmax(dim=0)[token] for t, token in wanted) / 3
    assert row_losses(model, tokenizer, ["w3 w4 <eos> w5"]).item() == pytest.approx(float(expected), abs=1e-5)


def test_loss_is_that_of_a_head_which_is_no_module_of_its_own(monkeypatch):
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    expected = row_losses(model, tokenizer, TEXTS)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(row_losses(model, tokenizer, TEXTS), expected, atol=1e-5, rtol=1e-5)


def test_loss_with_a_guardrail_is_that_of_a_plain_forward_pass():
    model, tokenizer, sae = tiny_parts()
    guarded = fit_guardrail(model, tokenizer, sae, topic_texts("forget", 40), topic_texts("retain", 80), progress=False)
    texts = topic_texts("forget", 6, seed=5)
    with record_firings(guarded) as firings:
        found = row_losses(guarded, tokenizer, texts)
    assert any(firing.fired for firing in firings)
    assert len(firings) == len(texts)
    expected = torch.tensor([plain_loss(guarded, tokenizer, text) for text in texts])
    torch.testing.assert_close(found.float(), expected, atol=2e-5, rtol=1e-5)


def test_loss_leaves_no_hook_behind():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    row_losses(model, tokenizer, TEXTS)
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("text", ["", "<eos>"])
def test_a_text_without_tokens_is_named_before_any_is_run(monkeypatch, text):
    model = base_model("llama")
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(UnlearnError, match=rf"texts\[1\]='{text}'"):
        row_losses(model, tiny_tokenizer(), ["w3 w4", text, "w5 w6 w7"], batch_size=1)


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        (" Paris.", ("Paris",), True),
        ("\n paris, of course", ("Paris",), True),
        (" the Nile", ("Nile",), True),
        (" Nile", ("the Nile",), True),
        (" “Titanic”", ("Titanic",), True),
        (" Parisian", ("Paris",), False),
        (" near Paris", ("Paris",), False),
        (" Y chromosome", ("Y",), True),
        (" Y.", ("Y",), True),
        (" You", ("Y",), False),
        (" y2", ("Y",), False),
        (" Berlin", ("Paris", "Berlin"), True),
        (" Qur'an", ("Qur'an",), True),
        (" (ATP)", ("ATP",), True),
        ("", ("Paris",), False),
        (" Guinea-Bissau", ("Guinea",), False),  # as labels are decided, too
        (" 1.5", ("1",), False),
    ],
)
def test_what_counts_as_recalled(text, answers, right):
    assert is_right(text, answers) is right


def test_recall_does_not_depend_on_the_batch():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    facts = [Fact(text, ("w3",)) for text in TEXTS]
    alone = [complete(model, tokenizer, [fact.prompt], max_new_tokens=5)[0] for fact in facts]
    assert [r.completion for r in recall(model, tokenizer, facts, max_new_tokens=5, batch_size=3)] == alone


def test_recall_sees_the_answer():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    word = complete(model, tokenizer, ["w3 w4"], max_new_tokens=1)[0]
    found = recall(model, tokenizer, [Fact("w3 w4", (word,)), Fact("w3 w4", ("nothing",))], max_new_tokens=3)
    assert [r.right for r in found] == [True, False]


def test_completing_needs_no_padding_token():
    model, tokenizer = base_model("gpt2"), tiny_tokenizer()
    expected = complete(model, tokenizer, ["w3 w4 w5", "w6"], max_new_tokens=4)
    tokenizer.pad_token = None
    assert complete(model, tokenizer, ["w3 w4 w5", "w6"], max_new_tokens=4) == expected


def closing_tokenizer():
    """As `tiny_tokenizer`, but it closes every text with EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert tokenizer("w3 w4").input_ids == [BOS, 3, 4, EOS]
    return tokenizer


def test_a_tokenizer_that_closes_every_text_lets_something_follow():
    model, plain, closing = base_model("llama"), tiny_tokenizer(), closing_tokenizer()
    for measured in (
        lambda t: complete(model, t, ["w3 w4 w5", "w6"], max_new_tokens=4),
        lambda t: answer_likelihoods(model, t, ["w3 w4", "w5"], ["w6", "w7 w8"]).log_probs.tolist(),
        lambda t: candidate_log_probs(model, t, ["w3 w4"], ["w6", "w7"]).tolist(),
        lambda t: relearning_attack(
            model, t, [Fact("w3 w4", ("w6",))], lambda m: complete(m, plain, ["w3"], max_new_tokens=4), (2,)
        ),
        lambda t: converse(model, t, ["w3", " w4 w5"], 4),
    ):
        assert measured(closing) == measured(plain)
    for tokenizer in (plain, closing):  # what stands in the text itself stays
        assert prompt_ids(tokenizer, "w3 <eos>") == [BOS, 3, EOS]


@pytest.mark.parametrize("rows", [[Fact("w3 w4", ("w5",))], [Choice("w3", ("w4", "w5"), 0)], ["w3 w4 w5"]])
def test_a_model_whose_logits_are_no_numbers_is_not_measured(rows):
    model = base_model("llama")
    with torch.no_grad():
        find_decoder_layers(model).layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UnlearnError, match="logits"):
        evaluate(model, lettered_tokenizer(), rows, progress=False)
    with pytest.raises(UnlearnError, match="logits"):
        converse(model, tiny_tokenizer(), ["w3"], 4)


def test_bootstrap_interval_covers_the_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.02)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.02)
    assert bootstrap_interval(values) == (low, high)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(torch.full((5,), 2.0)) == (2.0, 2.0)


def test_bootstrap_interval_of_nothing_is_refused():
    with pytest.raises(UnlearnError, match="values"):
        bootstrap_interval(torch.zeros(0))
