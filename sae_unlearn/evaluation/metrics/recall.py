"""Recall of facts by completion: right, wrong or refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from sae_unlearn.answer_matching import AnswerMatcher
from sae_unlearn.backbone.distributed import gathered, is_mine
from sae_unlearn.backbone.layers import check_module, input_device
from sae_unlearn.backbone.logits import FiniteLogits
from sae_unlearn.backbone.tokens import padding_id, prompt_ids
from sae_unlearn.checks import check_all, check_counts, check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.options.evaluation import MeasurementConfig


@dataclass(frozen=True)
class Fact:
    """Beginning of a text, and the answers that complete it correctly.

    Attributes:
        prompt (str): The beginning.
        answers (tuple of str): The accepted answers, the first one canonical.
        subject (str, *optional*, defaults to ""): Subject of the fact. Facts of one subject are not independent of each
            other. Empty if unknown.

    Raises:
        UnlearnError: If `prompt` is not a text, or `answers` is not a sequence of texts.
    """

    prompt: str
    answers: tuple[str, ...]
    subject: str = ""

    def __post_init__(self) -> None:
        check_is(self.prompt, str, "prompt")
        check_all(self.answers, str, f"answers of {self.prompt[:60]!r}")


@dataclass(frozen=True)
class Recall:
    """Completion of one fact.

    Attributes:
        fact (Fact): The fact.
        completion (str): Text that the model wrote.
        right (bool): The completion begins with one of the answers, see `is_right`.
    """

    fact: Fact
    completion: str
    right: bool


@torch.no_grad()
def recall(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    max_new_tokens: int | None = MeasurementConfig.max_new_tokens,
    batch_size: int = MeasurementConfig.batch_size,
    progress: str | None = None,
    shared: bool = False,
) -> list[Recall]:
    """Complete each fact's prompt greedily and compare the completion's beginning with the answers.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        facts (sequence of Fact): The facts.
        max_new_tokens (int, *optional*): Tokens of a completion. None takes `tokens_needed`: those of the longest
            accepted answer and four more, up to 128.
        batch_size (int, *optional*, defaults to 8): Prompts per forward pass.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Returns:
        list[Recall]: One for each fact.

    Raises:
        UnlearnError: If a fact is not a `Fact`, a number is not an integer of at least 1, or the logits are not finite.
    """
    check_module(model)
    check_all(facts, Fact, "facts")
    if max_new_tokens is None:
        max_new_tokens = tokens_needed(tokenizer, facts)
    check_counts(batch_size=batch_size, max_new_tokens=max_new_tokens)
    said: dict[int, list[str]] = {}  # completions by number of the batch
    with tqdm(total=len(facts), desc=progress, unit="fact", disable=progress is None) as bar:
        for number, start in enumerate(range(0, len(facts), batch_size)):
            prompts = [fact.prompt for fact in facts[start : start + batch_size]]
            if is_mine(number) or not shared:
                said[number] = complete(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
            bar.update(len(prompts))
    if shared:
        said = {number: texts for part in gathered(said) for number, texts in part.items()}
    completions = [text for number in sorted(said) for text in said[number]]
    return [Recall(fact, text, is_right(text, fact.answers)) for fact, text in zip(facts, completions, strict=True)]


@torch.no_grad()
def complete(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Return greedy completions of prompts, run as one left-padded batch.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        prompts (sequence of str): At least one prompt.
        max_new_tokens (int): Tokens of a completion.

    Raises:
        UnlearnError: If the model's logits are not finite.
    """
    check_all(prompts, str, "prompts", least=1)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    padding = padding_id(tokenizer)
    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    device = input_device(model)
    out = cast(Any, model).generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=padding,
        logits_processor=LogitsProcessorList([FiniteLogits()]),
    )
    return tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Return True if a completion begins with one of the answers, see `AnswerMatcher`."""
    return AnswerMatcher(answers).matches(text)


# words: data
REFUSALS = (
    "i don't know",
    "i do not know",
    "i'm not sure",
    "i am not sure",
    "i'm not aware",
    "i am not aware",
    "i'm not familiar",
    "i am not familiar",
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "i cannot",
    "i can't",
    "i have no information",
    "i have no idea",
    "i don't have",
    "i do not have",
    "i'm unable",
    "i am unable",
    "no idea",
    "unknown",
    "not known",
    "it is not known",
    "it is unknown",
    "it's unknown",
    "there is no information",
    "no information",
    "there is no such",
    "sorry",
    "unfortunately",
)
"""Beginnings of completions that count as a refusal, in lower case and with plain apostrophes."""

Verdict = Literal["right", "wrong", "refused"]


@dataclass(frozen=True)
class AnswerCounts:
    """Shares of completions that are right, wrong or a refusal, which add up to one.

    The intervals are Wilson's, over subjects if the facts name them.

    Attributes:
        right, wrong, refused (Estimate): Share of the completions of this kind.
    """

    right: Estimate
    wrong: Estimate
    refused: Estimate


def ask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    max_new_tokens: int | None = MeasurementConfig.max_new_tokens,
    batch_size: int = MeasurementConfig.batch_size,
    refusals: Sequence[str] = REFUSALS,
    progress: str | None = None,
) -> AnswerCounts:
    """Complete each fact's prompt greedily and return the shares of right, wrong and refused completions.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        facts (sequence of Fact): Prompts and accepted answers. Facts of one `subject` count as one observation in the
            intervals.
        max_new_tokens (int, *optional*): Tokens of a completion. None takes `tokens_needed`: those of the longest
            accepted answer and four more, up to 128.
        batch_size (int, *optional*, defaults to 8): Prompts per forward pass.
        refusals (sequence of str, *optional*, defaults to REFUSALS): See `verdict`.
        progress (str, *optional*): Title of a progress bar. None shows no bar.

    Raises:
        UnlearnError: If `facts` is empty, a fact is not a `Fact`, a number is not an integer of at least 1, or the
            logits are not finite.
    """
    return count_answers(
        recall(model, tokenizer, facts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress),
        refusals=refusals,
    )


def count_answers(found: Sequence[Recall], *, refusals: Sequence[str] = REFUSALS) -> AnswerCounts:
    """Return the shares of right, wrong and refused completions.

    Args:
        found (sequence of Recall): From `recall`.
        refusals (sequence of str, *optional*, defaults to REFUSALS): See `verdict`.

    Raises:
        UnlearnError: If `found` is empty.
    """
    if not found:
        raise UnlearnError("found=[]: expected at least one completion.")
    check_all(found, Recall, "found")
    verdicts = [verdict(one, refusals=refusals) for one in found]
    subjects = [one.fact.subject or str(number) for number, one in enumerate(found)]
    return AnswerCounts(*(Estimate.share([v == kind for v in verdicts], subjects) for kind in get_args(Verdict)))


def verdict(found: Recall, *, refusals: Sequence[str] = REFUSALS) -> Verdict:
    """Return "right", "refused" or "wrong".

    A completion is right if it begins with an answer, else refused if it begins with one of `refusals`, else wrong.
    Both are compared as `AnswerMatcher` does.
    """
    if found.right:
        return "right"
    is_refusal = _matcher(tuple(refusals)).matches(found.completion.replace("’", "'"))
    return "refused" if is_refusal else "wrong"


@lru_cache
def _matcher(refusals: tuple[str, ...]) -> AnswerMatcher:
    return AnswerMatcher(refusals)


_LONGEST = 128


def tokens_needed(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> int:
    """Return the tokens of the longest accepted answer plus four, at most 128.

    The four are for words before the answer.
    """
    answers = [f" {answer}" for fact in facts for answer in fact.answers]
    longest = max((len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers), default=0)
    return min(longest + 4, _LONGEST)
