"""Matching of a model's continuation with the accepted answers."""

import unicodedata
from collections.abc import Sequence


MATCHES = ("begins", "contains")

_LEADING = " \t\r\n\"'“”‘’«»„*_`([:"
_ARTICLES = ("the ", "a ", "an ")


class AnswerMatcher:
    """Compares continuations with the accepted answers of one question.

    Case, the kind and number of blanks, and the two Unicode forms of an accented letter do not count. An answer matches
    only as whole words: "Guinea" neither in "Guineans" nor in "Guinea-Bissau", 1 not in 1.5.

    Args:
        accepted (sequence of str): The accepted answers.
        match (str, *optional*, defaults to "begins"): "begins": the continuation begins with an answer, after blanks,
            quotes or an article. "contains": an answer is anywhere in it, which suits chat models that answer in
            sentences. Further text of a base model then counts too, so keep `max_new_tokens` low.
        ignore_accents (bool, *optional*, defaults to False): "Malmo" equals "Malmö".
    """

    def __init__(self, accepted: Sequence[str], match: str = "begins", ignore_accents: bool = False) -> None:
        self._begins = match == "begins"
        self._ignore_accents = ignore_accents
        self._accepted = [self._normal(answer) for answer in accepted]

    def matches(self, text: str) -> bool:
        """Return True if the continuation is right."""
        text = self._normal(text)
        if self._begins:
            return any(text.startswith(answer) and _ends_word(text, len(answer)) for answer in self._accepted)
        return any(self._contains(text, answer) for answer in self._accepted)

    def settled(self, text: str) -> bool:
        """Return True if no text after `text` can change the result of `matches`.

        With "begins" that is as soon as the finished words are neither an answer nor the beginning of one: most wrong
        answers are settled after a word. With "contains" it is when an answer is found.
        """
        end = len(text)  # of the finished words: the last one may continue
        while end > 0 and (_within_word(text + "x", end - 1) or _within_word(text + "0", end - 1)):
            end -= 1
        if not self._begins:
            return self.matches(text[:end] + "x")
        words = self._normal(text[:end])
        if not words or any(article.startswith(words) for article in _ARTICLES):
            return False
        return not any(answer.startswith(words) for answer in self._accepted)

    def _contains(self, text: str, answer: str) -> bool:
        place = text.find(answer)
        while place >= 0:
            if (place == 0 or not text[place - 1].isalnum()) and _ends_word(text, place + len(answer)):
                return True
            place = text.find(answer, place + 1)
        return False

    def _normal(self, text: str) -> str:
        # Decomposed, so that a growing text also only grows in this form
        text = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
        if self._ignore_accents:
            text = "".join(letter for letter in text if not unicodedata.combining(letter))
        text = " ".join(text.split()).lstrip(_LEADING)
        article = next((article for article in _ARTICLES if text.startswith(article)), "")
        return text[len(article) :].lstrip(_LEADING)


def _ends_word(text: str, end: int) -> bool:
    """Return True if a word that ends before `end` ends there."""
    return end >= len(text) or not _within_word(text, end)


def _within_word(text: str, place: int) -> bool:
    """Return True if the character at `place` continues the word before it."""
    letter, around = text[place], text[max(place - 1, 0) : place] + text[place + 1 : place + 2]
    if letter in ".,":
        return len(around) == 2 and around.isdigit()
    if letter in "-‐’'":
        return len(around) == 2 and around.isalpha()
    return letter.isalnum() or unicodedata.combining(letter) != 0
