"""Choices by probability and by letter, against plain transcriptions, and whatever the batch."""

import pytest
import torch
from lettered_words import LETTERS, lettered_tokenizer
from zoo import BOS, base_model

from sae_unlearn.backbone.tokens import question_prompt, turn_prompt
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import (
    Choice,
    answer_likelihoods,
    option_likelihoods,
    right_by_letter,
    right_by_likelihood,
)
from sae_unlearn.evaluation.figures import choice_figures
from sae_unlearn.evaluation.measurement import Measurement
from sae_unlearn.evaluation.metrics.choices import lettered, rotated
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods
from sae_unlearn.options.evaluation import EvaluationConfig


CHOICES = [
    Choice("w6", ("w30 w31", "w32", "w33 w34", "w35"), 3),
    Choice("w3 w4 w5", ("w20", "w21 w22", "w23 w24 w25", "w26"), 1),
    Choice("w15 w16", ("w50", "w51", "w52", "w53"), 2),
    Choice("w7 w8 w9 w10 w11 w12", ("w40", "w41 w42 w43"), 0),
    Choice("w13 w14", ("w44", "w45", "w46"), 2),
]


def log_probs(model, ids):
    """log p(token | before) at every place but the first, one row at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return [float(logits[t, ids[t + 1]]) for t in range(len(ids) - 1)]


def plain_likelihood(model, tokenizer, prompt, answer):
    before, row = tokenizer(prompt).input_ids, tokenizer(f"{prompt} {answer}").input_ids
    assert row[: len(before)] == before
    return sum(log_probs(model, row)[len(before) - 1 :]), len(row) - len(before)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_likelihoods_are_the_plain_ones(name, batch_size):
    model, tokenizer = base_model(name), lettered_tokenizer()
    prompts = [c.question for c in CHOICES for _ in c.options]
    answers = [o for c in CHOICES for o in c.options]
    found = answer_likelihoods(model, tokenizer, prompts, answers, batch_size=batch_size)
    expected = [plain_likelihood(model, tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
    torch.testing.assert_close(found.log_probs, torch.tensor([e[0] for e in expected]).double(), atol=1e-4, rtol=1e-5)
    assert found.tokens.tolist() == [e[1] for e in expected]
    torch.testing.assert_close(found.per_token, found.log_probs / found.tokens)


def test_an_answer_that_changes_the_prompts_end_is_counted_from_there():
    def merging(text):
        """The prompt's last token is another one with the answer behind it."""
        return {"input_ids": {"a b": [BOS, 3, 4], "a b c": [BOS, 3, 50, 60]}[text]}

    model = base_model("llama")
    found = answer_likelihoods(model, merging, ["a b"], ["c"])
    assert float(found.log_probs) == pytest.approx(sum(log_probs(model, [BOS, 3, 50, 60])[1:]), abs=1e-5)
    assert found.tokens.tolist() == [2]


def test_long_rows_lose_their_beginning():
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    found = answer_likelihoods(model, tokenizer, ["w3 w4 w5 w6"], ["w7 w8"], max_length=4)
    assert float(found.log_probs) == pytest.approx(sum(log_probs(model, [5, 6, 7, 8])[1:]), abs=1e-5)


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_answer_without_tokens_is_named(answer):
    with pytest.raises(UnlearnError, match=f"answers='{answer}'"):
        answer_likelihoods(base_model("llama"), lettered_tokenizer(), ["w3"], [answer])


def test_an_answer_that_does_not_fit_is_named():
    with pytest.raises(UnlearnError, match="max_length=3"):
        answer_likelihoods(base_model("llama"), lettered_tokenizer(), ["w3"], ["w4 w5 w6"], max_length=3)


def test_options_are_answers_to_the_question():
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    found = option_likelihoods(model, tokenizer, CHOICES)
    for choice, likelihood in zip(CHOICES, found, strict=True):
        expected = [plain_likelihood(model, tokenizer, f"{choice.question}\nAnswer:", o)[0] for o in choice.options]
        torch.testing.assert_close(likelihood.log_probs, torch.tensor(expected).double(), atol=1e-4, rtol=1e-5)


def test_right_is_the_likeliest():
    choice = Choice("q", ("four", "a", "of it all"), 0)
    found = AnswerLikelihoods(torch.tensor([-4.0, -3.0, -8.0]).double(), torch.tensor([1, 1, 3]))
    assert right_by_likelihood([choice], [found]).tolist() == [False]
    assert right_by_likelihood([choice], [found], per_character=True).tolist() == [False]  # -1, -3, -8/9
    long = Choice("q", ("four", "a", "of it all"), 2)
    assert right_by_likelihood([long], [found], per_character=True).tolist() == [True]


def test_as_likely_as_another_is_not_chosen():
    even = AnswerLikelihoods(torch.tensor([-1.0, -1.0]).double(), torch.tensor([1, 1]))
    assert right_by_likelihood([Choice("q", ("a", "b"), 0)], [even]).tolist() == [False]


def test_rotation_takes_every_option_everywhere():
    choice = Choice("q", ("a", "b", "c", "d"), 2)
    turned = [rotated(choice, by) for by in range(4)]
    assert [t.options for t in turned[:2]] == [("a", "b", "c", "d"), ("b", "c", "d", "a")]
    assert [t.right for t in turned] == [2, 1, 0, 3]
    assert all(t.options[t.right] == "c" for t in turned)


def test_the_options_stand_below_the_question():
    assert lettered(CHOICES[4]) == "w13 w14\nA. w44\nB. w45\nC. w46"
    asked = question_prompt(lettered_tokenizer(), lettered(CHOICES[4]))
    assert asked == "w13 w14\nA. w44\nB. w45\nC. w46\nAnswer:"


def plain_letters(model, tokenizer, choice, orders):
    """One order after the other, one prompt at a time."""
    found = []
    n = len(choice.options)
    for by in range(orders):
        options = [choice.options[(j + by) % n] for j in range(n)]
        lines = [f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=False)]
        ids = tokenizer("\n".join([choice.question, *lines, "Answer:"])).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        chosen = int(torch.stack([logits[LETTERS[letter]] for letter in "ABCD"[:n]]).argmax())
        found.append(float(options[chosen] == choice.options[choice.right]))
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_letters_are_the_plain_ones(batch_size):
    model, tokenizer = base_model("gemma3"), lettered_tokenizer()
    found = right_by_letter(model, tokenizer, CHOICES, batch_size=batch_size)
    assert found.shape == (5, 4)
    for choice, row in zip(CHOICES, found.tolist(), strict=True):
        assert row == plain_letters(model, tokenizer, choice, 4)
    assert 0 < found.sum() < found.numel()
    first = right_by_letter(model, tokenizer, CHOICES, orders=1, batch_size=batch_size)
    torch.testing.assert_close(first, found[:, :1])


def test_a_preferred_letter_gets_no_more_than_its_share(monkeypatch):
    def likes_b(model, tokenizer, prompts, letters, **rest):
        return torch.tensor([[0.0, 9.0, 0.0, 0.0][: len(letters)]] * len(prompts), dtype=torch.float64)

    monkeypatch.setattr("sae_unlearn.evaluation.metrics.choices.candidate_log_probs", likes_b)
    four = [Choice(f"q{i}", ("a", "b", "c", "d"), 1) for i in range(5)]
    assert right_by_letter(None, lettered_tokenizer(), four, orders=1).mean() == 1.0
    assert right_by_letter(None, lettered_tokenizer(), four).mean() == 0.25


def test_a_preferred_letter_gets_no_more_than_its_share_among_fewer_options_than_others_have(monkeypatch):
    def likes_a(model, tokenizer, prompts, letters, **rest):
        return torch.tensor([[9.0] + [0.0] * (len(letters) - 1)] * len(prompts), dtype=torch.float64)

    monkeypatch.setattr("sae_unlearn.evaluation.metrics.choices.candidate_log_probs", likes_a)
    mixed = [Choice(f"q{n}", tuple(f"w{i}" for i in range(20, 20 + n)), 0) for n in (2, 3, 4)]
    settings = EvaluationConfig(progress=False)
    it = Measurement(model=base_model("llama"), tokenizer=lettered_tokenizer(), settings=settings)
    figures = choice_figures(it, mixed, "retain", "mixed")
    [found] = [figure for figure in figures if figure.metric == "letter_accuracy"]
    assert found.values == pytest.approx((1 / 2, 1 / 3, 1 / 4))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"options": ("a",)}, "options of 'q': .*got 1"),
        ({"options": ("a", "a")}, "options of 'q': .*twice"),
        ({"options": ("a", " ")}, "options of 'q': .*empty"),
        ({"right": 2}, "right=2"),
        ({"right": -1}, "right=-1"),
    ],
)
def test_what_is_no_choice_is_refused(fields, said):
    with pytest.raises(UnlearnError, match=said):
        Choice(**({"question": "q", "options": ("a", "b"), "right": 0} | fields))


def test_orders_below_one_are_refused():
    with pytest.raises(UnlearnError, match="orders=0"):
        right_by_letter(base_model("llama"), lettered_tokenizer(), CHOICES, orders=0)


def test_a_chat_template_writes_its_bos_once():
    tokenizer = lettered_tokenizer()
    assert tokenizer(turn_prompt(tokenizer, "w3")).input_ids == [BOS, 70, 3, 71]
    assert tokenizer(question_prompt(tokenizer, "w3", True)).input_ids == [BOS, 70, 3, 71, 90]
    tokenizer.chat_template = None
    with pytest.raises(UnlearnError, match=r"^chat_template=True: "):
        turn_prompt(tokenizer, "w3")
