"""What a model chooses among the options of a question, by probability and by letter."""

from collections.abc import Sequence
from string import ascii_uppercase

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import check_module
from sae_unlearn.checks import check_all, check_counts
from sae_unlearn.evaluation.choice import Choice, lettered, rotated
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods, answer_likelihoods
from sae_unlearn.evaluation.metrics.ranking import candidate_log_probs
from sae_unlearn.evaluation.prompting import question_prompt


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
