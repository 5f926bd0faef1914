"""Multiple-choice questions, decided by the probability of the options or by letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import check_module
from sae_unlearn.backbone.tokens import question_prompt
from sae_unlearn.checks import check_all, check_counts, check_integer, check_is, check_same_number
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods, answer_likelihoods
from sae_unlearn.evaluation.metrics.ranking import candidate_log_probs
from sae_unlearn.options.evaluation import EvaluationConfig, MeasurementConfig


@dataclass(frozen=True)
class Choice:
    """A question and its options.

    Attributes:
        question (str): The question, without options.
        options (tuple of str): Two or more different options.
        right (int): 0-based index of the right option.
        subject (str, *optional*, defaults to ""): Subject of the question. Questions about one subject are not
            independent of each other. Empty if unknown.
        shown (bool, *optional*, defaults to True): The options belong to the question, as in an exam. If False they are
            alternative answers (TOFU's perturbed answers), and only their probabilities are compared.

    Raises:
        UnlearnError: If there are fewer than two options or more than letters, an option is empty or occurs twice, or
            `right` is out of range.
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
            raise UnlearnError(f"options of {self.question[:60]!r}: expected 2 to 26, got {len(self.options)}.")
        if not all(option.strip() for option in self.options):
            raise UnlearnError(
                f"options of {self.question[:60]!r}: expected texts, got an empty one. Omit the question."
            )
        if len(set(self.options)) < len(self.options):
            raise UnlearnError(
                f"options of {self.question[:60]!r}: expected different ones, got one twice. Omit the question."
            )
        check_integer("right", self.right, 0, len(self.options) - 1, fix=f"Correct {self.question[:60]!r}.")


def rotated(choice: Choice, by: int) -> Choice:
    """Return the same question with its options rotated by `by` places.

        options'[j] = options[(j + by) mod n]

    Over by = 0 ... n - 1 every option is once at every place.
    """
    n = len(choice.options)
    options = tuple(choice.options[(j + by) % n] for j in range(n))
    return Choice(choice.question, options, (choice.right - by) % n, choice.subject, choice.shown)


def lettered(choice: Choice) -> str:
    """Return the question with its options below it, one per line, with letters A to Z."""
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, choice.options, strict=False)]
    return "\n".join([choice.question, *lines])


def option_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    *,
    batch_size: int = MeasurementConfig.batch_size,
    chat_template: bool = MeasurementConfig.chat_template,
    progress: str | None = None,
    shared: bool = False,
) -> list[AnswerLikelihoods]:
    """Return the likelihood of each option as the answer to its question, one result for each choice.

    The question is asked without options. A guardrail that judges whole rows judges question and option together, so it
    may fire on one option and not on another. `right_by_letter` has all options in the prompt.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        choices (sequence of Choice): The questions.
        batch_size (int, *optional*, defaults to 8): Options per forward pass. It changes only rounding.
        chat_template (bool, *optional*, defaults to False): Put questions into the tokenizer's chat template.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Raises:
        UnlearnError: If a choice is not a `Choice`, `batch_size` is not an integer of at least 1, or the logits are not
            finite.
    """
    check_module(model)
    check_all(choices, Choice, "choices")
    check_counts(batch_size=batch_size)
    prompts = [question_prompt(tokenizer, c.question, chat_template) for c in choices for _ in c.options]
    options = [option for c in choices for option in c.options]
    found = answer_likelihoods(
        model, tokenizer, prompts, options, batch_size=batch_size, progress=progress, shared=shared
    )
    sizes = [len(c.options) for c in choices]
    parts = zip(found.log_probs.split(sizes), found.tokens.split(sizes), strict=True)
    return [AnswerLikelihoods(*part) for part in parts]


def right_by_likelihood(
    choices: Sequence[Choice], likelihoods: Sequence[AnswerLikelihoods], *, per_character: bool = False
) -> Tensor:
    """Return True for each question whose right option is the likeliest, `[n]` bool.

        argmax_o log P(o | q)   or   argmax_o log P(o | q) / characters of o

    These are `acc` and `acc_norm` of the LM evaluation harness. A tie counts as wrong.

    Args:
        choices (sequence of Choice): The questions.
        likelihoods (sequence of AnswerLikelihoods): From `option_likelihoods`.
        per_character (bool, *optional*, defaults to False): Divide by the characters of the option.

    Raises:
        UnlearnError: If the numbers of choices and likelihoods differ.
    """
    check_same_number(choices=choices, likelihoods=likelihoods)
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
    *,
    orders: int | None = EvaluationConfig.orders,
    batch_size: int = MeasurementConfig.batch_size,
    chat_template: bool = MeasurementConfig.chat_template,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Return the orders of the options in which the right letter is the likeliest.

    The options are below the question, and log p(letter | prompt) decides. The first order is the given one, and each
    further order rotates the options by one place (`rotated`). Over a full rotation a preferred letter gains only its
    share. A question with fewer options than `orders` repeats its rotations; omit these from a mean.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        choices (sequence of Choice): The questions.
        orders (int, *optional*): Number of orders. None takes the largest number of options.
        batch_size (int, *optional*, defaults to 8): Prompts per forward pass. It changes only rounding.
        chat_template (bool, *optional*, defaults to False): Put questions into the tokenizer's chat template.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Returns:
        Tensor: `[n, orders]` float64, 1 if right and 0 if not.

    Raises:
        UnlearnError: If `orders` is below 1 or `choices` is empty.
    """
    check_all(choices, Choice, "choices", 1)
    orders = max(len(c.options) for c in choices) if orders is None else orders
    check_integer("orders", orders, 1)
    found = torch.zeros(len(choices), orders, dtype=torch.float64)
    for size in sorted({len(c.options) for c in choices}):
        index = [i for i, c in enumerate(choices) if len(c.options) == size]
        turns = min(orders, size)
        asked = [rotated(choices[i], by) for i in index for by in range(turns)]
        prompts = [question_prompt(tokenizer, lettered(choice), chat_template) for choice in asked]
        # rows of similar length share a batch, which saves padding
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        scores = torch.empty(len(prompts), size, dtype=torch.float64)
        letters = list(ascii_uppercase[:size])
        sorted_prompts = [prompts[i] for i in order]
        scores[order] = candidate_log_probs(
            model, tokenizer, sorted_prompts, letters, batch_size=batch_size, progress=progress, shared=shared
        )
        hits = torch.tensor([_alone_highest(s, c.right) for s, c in zip(scores, asked, strict=True)]).double()
        repeated = [by % size for by in range(orders)]
        found[index] = hits.view(len(index), turns)[:, repeated]
    return found


def _alone_highest(scores: Tensor, place: int) -> bool:
    return int((scores >= scores[place]).sum()) == 1
