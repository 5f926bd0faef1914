"""The figures of a set of facts: recall, refusals, and where the gate fires."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import is_mine
from sae_unlearn.evaluation.answers import verdict
from sae_unlearn.evaluation.metrics.firing import fired_rows
from sae_unlearn.evaluation.metrics.recall import Fact, Recall, begins_with, recall
from sae_unlearn.evaluation.prompting import turn_prompt
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, fingerprint
from sae_unlearn.evaluation.rouge import rouge_l
from sae_unlearn.evaluation.settings import Settings
from sae_unlearn.guardrail import record_firings
from sae_unlearn.guardrail.model import guard_layers


_LONGEST = 128


def fact_figures(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    side: str,
    data: str,
    settings: Settings,
    notes: list[str],
) -> list[Figure]:
    """Complete each fact's prompt greedily, and see what comes; see `recall`, `rouge_l` and `verdict`.

    Args:
        notes: is given a line where ROUGE-L is left out.

    Raises:
        ValueError: a fact without answers.
    """
    check_answers(facts, f"{side}, {data}")
    asked = list(facts)
    if settings.chat_template:
        asked = [replace(fact, prompt=turn_prompt(tokenizer, fact.prompt)) for fact in facts]
    tokens = settings.max_new_tokens or tokens_needed(tokenizer, facts)
    with record_firings(model) if guard_layers(model) else nullcontext() as firings:
        found = recall(
            model, tokenizer, asked, tokens, settings.batch_size, settings.bar(side, data, "recall"), shared=True
        )
        mine = [i for i in range(len(facts)) if is_mine(i // settings.batch_size)]
        fired = fired_rows(firings, mine, shared=True) if firings is not None else {}
    rows = fingerprint([[astuple(fact) for fact in facts], tokens, settings.chat_template])
    return recall_figures(found, fired, side, data, rows, notes)


def check_answers(facts: Sequence[Fact], what: str) -> None:
    """Raise unless every fact has answers, none of them empty.

    Raises:
        ValueError: naming the first that has not.
    """
    bare = next((fact for fact in facts if not fact.answers or not all(map(str.strip, fact.answers))), None)
    if bare is not None:
        raise ValueError(f"{what}: {bare.prompt[:60]!r} has answers {bare.answers!r}; give at least one text.")


def recall_figures(
    found: Sequence[Recall], fired: Mapping[str, Tensor], side: str, data: str, rows: str, notes: list[str]
) -> list[Figure]:
    """The figures of completions that are there.

    Args:
        fired: by guardrail, whether it fired on each of them, `[n]` bool; empty without guardrails.
        rows: fingerprint of what was asked.
        notes: is given a line where ROUGE-L is left out.
    """
    figure = partial(figure_of_rows, side, data, subjects=[one.fact.subject for one in found], rows=rows)
    exact = [begins_with(one.completion, one.fact.answers[:1]) for one in found]
    figures = [
        figure("exact_recall", "share", torch.tensor(exact)),
        figure("alias_recall", "share", torch.tensor([one.right for one in found])),
    ]
    try:
        scores = rouge_l(found)
        figures += [figure("rouge_l_recall", "score", scores.recall), figure("rouge_l_f1", "score", scores.f1)]
    except ImportError as error:
        notes.append(f"{side}, {data}: no ROUGE-L; {error}")
    figures.append(figure("refusals", "share", torch.tensor([verdict(one) == "refused" for one in found])))
    return figures + [figure(f"fires:{name}", "share", rates) for name, rates in fired.items()]


def tokens_needed(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> int:
    """Tokens of the longest accepted answer, and four more for what may stand before it; 128 at most."""
    answers = [f" {answer}" for fact in facts for answer in fact.answers]
    longest = max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)
    return min(longest + 4, _LONGEST)
