"""What counts as an answer."""

import pytest

from sae_unlearn.answer_matching import AnswerMatcher


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" France.", "France", True),
        (" FRANCE", "france", True),
        (" Frances", "France", False),
        (" in France", "France", False),
        (' the "Netherlands"', "Netherlands", True),
        (" the Hague", "The Hague", True),
        ("\n United\n  States of", "United States", True),
        (" Guinea-Bissau", "Guinea", False),
        (" Guinea - a", "Guinea", True),
        (" Guinea-", "Guinea", True),
        (" Côte d'Ivoire,", "Côte d'Ivoire", True),
        (" Co\u0302te d'Ivoire", "Côte d'Ivoire", True),
        (" Cote d'Ivoire", "Côte d'Ivoire", False),
        (" Straße", "STRASSE", True),
        (" 1979.", "1979", True),
        (" 19790", "1979", False),
        (" 1.5 million", "1", False),
        (" Peru\u0301", "Peru", False),
        (" 日本 です", "日本", True),
        (" U.S. troops", "U.S.", True),
        ("", "France", False),
    ],
)
def test_an_answer_at_the_beginning(text, answer, right):
    assert AnswerMatcher(["nothing", answer]).matches(text) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [("It lies in France, I think", True), ("france", True), ("San Francesco", False), ("", False), ("1France", False)],
)
def test_an_answer_somewhere(text, right):
    assert AnswerMatcher(["France"], "contains").matches(text) == right


def test_accents():
    assert AnswerMatcher(["Malmö"], ignore_accents=True).matches("Malmo")
    assert AnswerMatcher(["Malmo"], ignore_accents=True).matches("Malmö,")


TEXTS = (
    " France. It is",
    " the United States of America",
    " United Kingdom",
    ' "The U.S. and',
    " Guinea-Bissau is",
    " Guinea - a",
    " 1979.5 or 1979",
    " Co\u0302te d'Ivoire",
    " a city in France, and",
    "\n\nA: France",
    " Francesco of the Netherlands",
)
ACCEPTED = ("France", "United States", "U.S.", "The Netherlands", "Guinea", "1979", "Côte d'Ivoire", "a")


@pytest.mark.parametrize("how", ["begins", "contains"])
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_settled_stays_so(how, text):
    """Cut anywhere: once settled, whatever is appended gives the same answer."""
    for answer in ACCEPTED:
        matcher = AnswerMatcher([answer], how)
        settled = [matcher.settled(text[:end]) for end in range(len(text) + 1)]
        for end in range(len(text) + 1):
            if settled[end]:
                assert all(settled[end:])
                assert {matcher.matches(text[:later]) for later in range(end, len(text) + 1)} == {matcher.matches(text)}
                for more in ("x", "1", ".5", " of", "-y", "\u0301", ","):
                    assert matcher.matches(text[:end] + more) == matcher.matches(text)


def test_wrong_answers_are_settled_after_a_word():
    matcher = AnswerMatcher(["United States", "France"])
    assert matcher.settled(" Germany is")
    assert matcher.settled(" Germany,")
    assert matcher.settled(" United Kingdom.")
    assert matcher.settled(" France,")
    assert not any(
        matcher.settled(text) for text in ("", " ", " Ger", " the ", " United ", " United States ", " France")
    )
    assert AnswerMatcher(["France"], "contains").settled("It is France,")
    assert not AnswerMatcher(["France"], "contains").settled("It is Germany,")
