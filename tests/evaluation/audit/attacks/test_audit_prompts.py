"""Attacks that rewrite prompts: what they make of a prompt, and in which order they ask."""

import random
from types import SimpleNamespace

import pytest

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Fact
from sae_unlearn.evaluation.audit.attacks import dilution_attack, rephrasing_attack, spelling_attack
from sae_unlearn.evaluation.audit.attacks.base import closing, split_cue, with_cue
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER, diluted, filler_words
from sae_unlearn.evaluation.audit.attacks.rephrasing import TEMPLATES, rephrased
from sae_unlearn.evaluation.audit.attacks.spelling import respelt
from sae_unlearn.evaluation.audit.attacks.wrappers import WRAPPERS


SENTENCE = "The muscular organ that pumps blood is the"
QUESTION = "Question: Which organ pumps blood?\nAnswer:"
FACTS = [Fact(SENTENCE, ("heart",), "heart"), Fact(QUESTION, ("the heart",), "heart")]
MODEL = SimpleNamespace()


def asked(model, facts):
    assert model is MODEL
    assert [(f.answers, f.subject) for f in facts] == [(f.answers, f.subject) for f in FACTS]
    return [fact.prompt for fact in facts]


@pytest.mark.parametrize(
    ("prompt", "stem", "cue"),
    [
        (SENTENCE, SENTENCE, ""),
        (QUESTION, "Question: Which organ pumps blood?", "Answer:"),
        ("What follows:", "What follows:", ""),
        ("\nAnswer:", "\nAnswer:", ""),
        ("A: x\nB: y", "A: x\nB: y", ""),
    ],
)
def test_a_cue_is_the_last_line_that_calls_for_an_answer(prompt, stem, cue):
    assert split_cue(prompt) == (stem, cue)
    assert with_cue(stem, cue) == prompt


def test_filler_of_the_wanted_length_stands_where_it_should():
    for words in (1, 7, 300):
        before, after, both = (diluted(SENTENCE, words, place) for place in ("before", "after", "both"))
        text, rest = before.split("\n\n")
        assert rest == SENTENCE
        assert len(text.split()) == words
        first, filler, last = after.split("\n\n")
        assert (first, last) == (f"{SENTENCE} ...", "... pumps blood is the")
        assert filler == text
        parts = both.split("\n\n")
        assert len(" ".join([parts[0], *parts[2:-1]]).split()) == words
    assert diluted(QUESTION, 5, "after").endswith("\n\nAnswer:")
    assert diluted(QUESTION, 5, "after").startswith("Question: Which organ pumps blood?\n\n")
    assert diluted(SENTENCE, 0, "after") == SENTENCE


def test_filler_is_drawn_anew_for_every_prompt_and_a_seed_is_a_draw():
    draws = [diluted(SENTENCE, 40, "before", seed=seed, index=i) for seed, i in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3
    words = filler_words(1000, FILLER, random.Random(0))
    assert len(words) == 1000
    assert words[: len(" ".join(FILLER).split())] != words[len(" ".join(FILLER).split()) :]


def test_dilution_asks_every_length_at_every_place():
    points = dilution_attack(MODEL, FACTS, asked, words=(0, 4), places=("after", "before"), seed=3)
    assert [(p.variant, p.strength) for p in points] == [("after", 0), ("after", 4), ("before", 0), ("before", 4)]
    assert points[0].found == [SENTENCE, QUESTION]
    assert points[3].found == [diluted(f.prompt, 4, "before", seed=3, index=i) for i, f in enumerate(FACTS)]


def test_dilution_that_makes_no_sense_is_refused():
    for options, name in (
        ({"words": (-1,)}, "words=-1"),
        ({"places": ("above",)}, "place="),
        ({"filler": (" ",)}, "filler"),
    ):
        with pytest.raises(UnlearnError, match=f"^{name}"):
            dilution_attack(MODEL, FACTS, asked, **options)


@pytest.mark.parametrize("templates", [TEMPLATES, WRAPPERS])
def test_templates_hold_the_whole_question_and_end_where_the_answer_begins(templates):
    for template in templates.values():
        for fact in FACTS:
            found = rephrased(fact.prompt, template)
            stem, cue = split_cue(fact.prompt)
            assert stem in found
            assert found != fact.prompt
            assert "{" not in found
            assert found.endswith((fact.prompt, closing(stem, cue)))


def test_braces_of_a_prompt_are_text():
    assert rephrased("a {stem} {prompt", "x {prompt} y {cue}") == "x a {stem} {prompt y ... a {stem} {prompt"
    with pytest.raises(UnlearnError, match="template='no place'"):
        rephrasing_attack(MODEL, FACTS, asked, {"bad": "no place"})


def test_templates_are_asked_by_name():
    points = rephrasing_attack(MODEL, FACTS, asked, {"one": "1 {prompt}", "two": "2 {prompt}"})
    assert [(p.variant, p.strength) for p in points] == [("one", 1), ("two", 2)]
    assert points[1].found == [f"2 {SENTENCE}", f"2 {QUESTION}"]
    assert [p.variant for p in rephrasing_attack(MODEL, FACTS, asked, WRAPPERS)] == list(WRAPPERS)


def test_words_are_respelt():
    assert respelt(SENTENCE, 1, "capitals") == "The MUSCULAR ORGAN THAT PUMPS BLOOD is the"
    assert respelt("the organ", 1, "spacing") == "the o r g a n"
    found = respelt("the organ", 1, "misspelling")
    assert found != "the organ"
    assert sorted(found) == sorted("the organ")
    assert (found[4], found[-1]) == ("o", "n")  # the ends of a word stay
    assert respelt(QUESTION, 1, "capitals") == "QUESTION: WHICH ORGAN PUMPS BLOOD?\nAnswer:"
    for kind in ("spacing", "misspelling", "capitals"):
        assert respelt(SENTENCE, 0, kind) == SENTENCE


def test_a_larger_share_respells_what_a_smaller_one_does():
    text = " ".join(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(200))
    changed = []
    for share in (0.2, 0.6):
        words = zip(text.split(), respelt(text, share, "capitals", seed=1).split(), strict=True)
        changed.append({a for a, b in words if a != b})
    assert changed[0] < changed[1]
    assert 20 < len(changed[0]) < 60
    assert 90 < len(changed[1]) < 150


def test_spelling_asks_every_share_of_every_kind():
    points = spelling_attack(MODEL, FACTS, asked, shares=(0.5, 1.0), kinds=("capitals", "spacing"), seed=2)
    assert [(p.variant, p.strength) for p in points] == [
        ("capitals", 0.5),
        ("capitals", 1),
        ("spacing", 0.5),
        ("spacing", 1),
    ]
    assert points[2].found == [respelt(f.prompt, 0.5, "spacing", 2, i) for i, f in enumerate(FACTS)]
    with pytest.raises(UnlearnError, match=r"share=1\.5"):
        spelling_attack(MODEL, FACTS, asked, shares=(1.5,))
    with pytest.raises(UnlearnError, match="kind='leet'"):
        spelling_attack(MODEL, FACTS, asked, kinds=("leet",))
