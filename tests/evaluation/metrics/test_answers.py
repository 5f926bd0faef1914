"""Right, wrong, refused."""

import pytest
from tiny_topic import tiny_tokenizer
from zoo import base_model

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.recall import Fact, Recall, ask, complete, count_answers, verdict


def completed(text, right=False, subject=""):
    return Recall(Fact("?", ("x",), subject), text, right)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" I don't know.", "refused"),
        (" I don’t know", "refused"),
        ("\nI'm not sure, but", "refused"),
        (" Unknown", "refused"),
        (" unknowns", "wrong"),
        (" Sorry, I", "refused"),
        (" France", "wrong"),
        (" France. I don't know", "wrong"),
        ("", "wrong"),
    ],
)
def test_what_counts_as_a_refusal(text, expected):
    assert verdict(completed(text)) == expected


def test_a_right_answer_is_right_even_if_it_reads_like_a_refusal():
    assert verdict(completed(" Unknown", right=True)) == "right"


def test_own_phrases_stand_in():
    assert verdict(completed(" pass"), refusals=["pass"]) == "refused"
    assert verdict(completed(" I don't know"), refusals=["pass"]) == "wrong"


def test_shares_add_up_and_subjects_count_once():
    found = [
        completed("a", True, "s"),
        completed("b", True, "s"),
        completed("I don't know", subject="t"),
        completed("c", subject="t"),
    ]
    counts = count_answers(found)
    assert (counts.right.value, counts.wrong.value, counts.refused.value) == (0.5, 0.25, 0.25)
    assert counts.right.n == 2
    without = count_answers([completed("a", True), completed("b")])
    assert without.right.n == 2


def test_nothing_to_count_is_refused():
    with pytest.raises(UnlearnError, match=r"found=\[\]"):
        count_answers([])


def test_asking_a_model():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    word = complete(model, tokenizer, ["w3 w4"], max_new_tokens=1)[0]
    facts = [Fact("w3 w4", (word,)), Fact("w3 w4", ("nothing",)), Fact("w3 w4", ("nothing",))]
    counts = ask(model, tokenizer, facts, max_new_tokens=2)
    assert (counts.right.value, counts.wrong.value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert ask(model, tokenizer, facts, max_new_tokens=2, refusals=[word]).refused.value == pytest.approx(2 / 3)
