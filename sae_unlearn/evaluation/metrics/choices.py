"""What a model chooses among the options of a question, by probability and by letter.

A question with several options, one of them right, and how it is put to a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import check_module
from sae_unlearn.backbone.tokens import question_prompt
from sae_unlearn.checks import check_all, check_counts, check_is
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods, answer_likelihoods
from sae_unlearn.evaluation.metrics.ranking import candidate_log_probs


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


def option_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    batch_size: int = 8,
    chat_template: bool = False,
    progress: str | None = None,
    shared: bool = False,
) -> list[AnswerLikelihoods]:
    """How likely each option is as the answer to its question, which is asked without options; one for each choice.

    A guardrail that judges whole sequences judges question and option together, so it may fire on one option and not
    on another; `right_by_letter` has all options in the prompt.

    Args:
        model: any causal language model, with or without adapters.
        batch_size: options per forward pass; the result does not depend on it, up to rounding.
        chat_template: put questions into the tokenizer's chat template.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.
    """
    check_module(model)
    check_all(choices, Choice, "choices")
    check_counts(batch_size=batch_size)
    prompts = [question_prompt(tokenizer, c.question, chat_template) for c in choices for _ in c.options]
    options = [option for c in choices for option in c.options]
    found = answer_likelihoods(model, tokenizer, prompts, options, batch_size, progress=progress, shared=shared)
    sizes = [len(c.options) for c in choices]
    parts = zip(found.log_probs.split(sizes), found.tokens.split(sizes), strict=True)
    return [AnswerLikelihoods(*part) for part in parts]


def right_by_likelihood(
    choices: Sequence[Choice], likelihoods: Sequence[AnswerLikelihoods], per_character: bool = False
) -> Tensor:
    """Whether the right option is the likeliest, `[n]` bool.

        argmax_o log P(o | q)   or   argmax_o log P(o | q) / characters of o

    These are `acc` and `acc_norm` of the LM evaluation harness. A right option that is only as likely as another one
    was not chosen.
    """
    found = []
    for choice, likelihood in zip(choices, likelihoods, strict=True):
        scores = likelihood.log_probs
        if per_character:
            scores = scores / torch.tensor([len(option) for option in choice.options])
        found.append(_alone_highest(scores, choice.right))
    return torch.tensor(found, dtype=torch.bool)


def right_by_letter(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    orders: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """In which orders of the options the right one's letter is the likeliest, `[n, orders]` float64, of 0 and 1.

    The options stand below the question, and log p(letter | prompt) decides. The first order is the given one; each
    further one turns the options by a place (`rotated`). A model that prefers a letter gets no more than its share
    from turning them all the way round. With fewer options than `orders` the rest of the row repeats the turns, and is
    to be left out of a mean.

    Args:
        orders: how many; None takes as many as the most options there are.
        batch_size: prompts per forward pass; the result does not depend on it, up to rounding.
        chat_template: put questions into the tokenizer's chat template.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.

    Raises:
        ValueError: fewer than one order, or no questions.
    """
    if not choices:
        raise ValueError("No questions; pass at least one.")
    orders = max(len(c.options) for c in choices) if orders is None else orders
    if orders < 1:
        raise ValueError(f"orders={orders}; expected 1 (as given) or more.")
    found = torch.zeros(len(choices), orders, dtype=torch.float64)
    for size in sorted({len(c.options) for c in choices}):
        index = [i for i, c in enumerate(choices) if len(c.options) == size]
        turns = min(orders, size)
        asked = [rotated(choices[i], by) for i in index for by in range(turns)]
        prompts = [question_prompt(tokenizer, lettered(choice), chat_template) for choice in asked]
        # rows of like length go together, so that little is spent on padding
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        scores = torch.empty(len(prompts), size, dtype=torch.float64)
        letters = list(ascii_uppercase[:size])
        sorted_prompts = [prompts[i] for i in order]
        scores[order] = candidate_log_probs(model, tokenizer, sorted_prompts, letters, batch_size, progress, shared)
        hits = torch.tensor([_alone_highest(s, c.right) for s, c in zip(scores, asked, strict=True)]).double()
        repeated = [by % size for by in range(orders)]
        found[index] = hits.view(len(index), turns)[:, repeated]
    return found


def _alone_highest(scores: Tensor, place: int) -> bool:
    return int((scores >= scores[place]).sum()) == 1
