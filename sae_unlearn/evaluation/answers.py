"""What a model says when it is asked: right, wrong, or a refusal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.checks import check_all
from sae_unlearn.evaluation.metrics.recall import LEADING, Fact, Recall, recall
from sae_unlearn.evaluation.report.estimate import Estimate


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
    """Shares of completions that are right, wrong or a refusal; the three add up to one.

    The intervals are Wilson's, over subjects where the facts name them.
    """

    right: Estimate
    wrong: Estimate
    refused: Estimate


def ask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    max_new_tokens: int = 8,
    batch_size: int = 16,
    refusals: Sequence[str] = REFUSALS,
    progress: str | None = None,
) -> AnswerCounts:
    """Complete each fact's prompt greedily, and count what comes.

    Args:
        model: any causal language model, with or without adapters.
        facts: prompts and accepted answers; facts of one `subject` count as one observation in the intervals.
        refusals: see `verdict`.
        progress: title of a progress bar; None for no bar.
    """
    return count_answers(recall(model, tokenizer, facts, max_new_tokens, batch_size, progress), refusals)


def count_answers(found: Sequence[Recall], refusals: Sequence[str] = REFUSALS) -> AnswerCounts:
    """Shares of right, wrong and refused completions.

    Raises:
        ValueError: no completions.
    """
    if not found:
        raise ValueError("No completions to count; pass at least one fact.")
    check_all(found, Recall, "found")
    verdicts = [verdict(one, refusals) for one in found]
    subjects = [one.fact.subject or str(number) for number, one in enumerate(found)]
    return AnswerCounts(*(Estimate.share([v == kind for v in verdicts], subjects) for kind in get_args(Verdict)))


def verdict(found: Recall, refusals: Sequence[str] = REFUSALS) -> Verdict:
    """Right where the completion begins with an answer; else refused where it begins with one of `refusals` (case and
    leading blanks aside, whole words); else wrong."""
    if found.right:
        return "right"
    text = found.completion.lstrip(LEADING).lower().replace("’", "'")
    for phrase in refusals:
        if text.startswith(phrase) and not text[len(phrase) : len(phrase) + 1].isalnum():
            return "refused"
    return "wrong"
