"""Recall of facts by completion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Fact:
    """A sentence's beginning and the answers that complete it rightly."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Recall:
    """What a model made of one fact.

    Attributes:
        fact: the fact.
        completion: what the model wrote.
        right: whether the completion begins with one of the answers (case and leading blanks aside, whole words).
    """

    fact: Fact
    completion: str
    right: bool


@torch.no_grad()
def recall(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    max_new_tokens: int = 8,
    batch_size: int = 16,
    progress: str | None = None,
) -> list[Recall]:
    """Complete each fact's prompt greedily, and see whether the completion begins with an answer.

    Args:
        model: any causal language model, with or without adapters.
        progress: title of a progress bar; None for no bar.
    """
    found: list[Recall] = []
    with tqdm(total=len(facts), desc=progress, unit="fact", disable=progress is None) as bar:
        for start in range(0, len(facts), batch_size):
            chosen = facts[start : start + batch_size]
            completions = complete(model, tokenizer, [fact.prompt for fact in chosen], max_new_tokens)
            found += [
                Recall(fact, text, begins_with(text, fact.answers))
                for fact, text in zip(chosen, completions, strict=True)
            ]
            bar.update(len(chosen))
    return found


def complete(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Greedy completions of prompts, as one left-padded batch."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def begins_with(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` begins with one of `answers` as whole words; case, leading blanks, quotes and articles aside."""
    text = text.lstrip(" \t\n\"'“‘*").lower()
    for article in ("the ", "a ", "an "):
        text = text.removeprefix(article)
    for answer in (answer.lower() for answer in answers):
        for article in ("the ", "a ", "an "):
            answer = answer.removeprefix(article)
        if text.startswith(answer) and not text[len(answer) : len(answer) + 1].isalnum():
            return True
    return False
