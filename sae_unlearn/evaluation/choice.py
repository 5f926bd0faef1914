"""A question with several options, one of them right, and how it is put to a model."""

from dataclasses import dataclass
from string import ascii_uppercase

from sae_unlearn.checks import check_all, check_is


@dataclass(frozen=True)
class Choice:
    """A question and its options.

    Attributes:
        question: the question, without options.
        options: two or more, all different.
        right: place of the right one among them, from 0.
        subject: what the question is about; questions about one subject are not independent of each other. Empty if
            not known.
        shown: whether the options belong to the question, as in an exam. If not, they are what else could have been
            said (TOFU's perturbed answers), and are only compared by their probability.

    Raises:
        ValueError: fewer than two options or more than letters, an empty one, one that is there twice, or a `right`
            that is none of them.
    """

    question: str
    options: tuple[str, ...]
    right: int
    subject: str = ""
    shown: bool = True

    def __post_init__(self) -> None:
        check_is(self.question, str, "question")
        check_all(self.options, str, f"options of {self.question[:60]!r}")
        if not 2 <= len(self.options) <= len(ascii_uppercase):
            raise ValueError(f"{self.question[:60]!r} has {len(self.options)} options; expected 2 to 26.")
        if not all(option.strip() for option in self.options):
            raise ValueError(f"An option of {self.question[:60]!r} is empty; leave the question out.")
        if len(set(self.options)) < len(self.options):
            raise ValueError(f"An option of {self.question[:60]!r} is there twice; leave the question out.")
        if not 0 <= self.right < len(self.options):
            raise ValueError(
                f"right={self.right} of {self.question[:60]!r}; expected the place of an option, "
                f"0 to {len(self.options) - 1}."
            )


def rotated(choice: Choice, by: int) -> Choice:
    """The same question with its options turned by `by` places: the option at place j is the one that was at
    (j + by) mod n. Over by = 0 ... n - 1 every option stands once at every place."""
    n = len(choice.options)
    options = tuple(choice.options[(j + by) % n] for j in range(n))
    return Choice(choice.question, options, (choice.right - by) % n, choice.subject, choice.shown)


def lettered(choice: Choice) -> str:
    """The question with its options below it, one a line, behind A to Z."""
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, choice.options, strict=False)]
    return "\n".join([choice.question, *lines])
