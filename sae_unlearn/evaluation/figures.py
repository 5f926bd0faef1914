"""Figures of a set of facts, choices or texts, with the fire rates of the guardrails."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import is_mine
from sae_unlearn.backbone.tokens import question_prompt, turn_prompt
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.measurement import Measurement
from sae_unlearn.evaluation.metrics.choices import (
    Choice,
    lettered,
    option_likelihoods,
    right_by_letter,
    right_by_likelihood,
)
from sae_unlearn.evaluation.metrics.firing import fired_rows, row_firings
from sae_unlearn.evaluation.metrics.recall import Fact, Recall, is_right, recall, tokens_needed, verdict
from sae_unlearn.evaluation.metrics.rouge import rouge_l
from sae_unlearn.evaluation.metrics.text import predicted_tokens, row_divergences, row_losses
from sae_unlearn.evaluation.metrics.truth_ratio import forget_quality, log_truth_ratios, truth_scores
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, rows_digest
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.guardrail import record_firings


def fact_figures(it: Measurement, facts: Sequence[Fact], side: str, data: str) -> list[Figure]:
    """Complete each fact's prompt greedily and return recall, refusals, ROUGE-L and fire rates.

    Args:
        it (Measurement): The measured model. Its notes receive a line if ROUGE-L is skipped.
        facts (sequence of Fact): The facts.
        side (str): "forget" or "retain".
        data (str): Name of the set.

    Raises:
        UnlearnError: If a fact has no answers.
    """
    check_answers(facts, f"{side}, {data}")
    tokenizer, settings = it.tokenizer, it.settings
    asked = list(facts)
    if settings.chat_template:
        asked = [replace(fact, prompt=turn_prompt(tokenizer, fact.prompt)) for fact in facts]
    tokens = settings.max_new_tokens or tokens_needed(tokenizer, facts)
    with record_firings(it.model) if it.guarded else nullcontext() as firings:
        found = recall(
            it.model,
            tokenizer,
            asked,
            max_new_tokens=tokens,
            batch_size=settings.batch_size,
            progress=settings.bar(side, data, "recall"),
            shared=True,
        )
        mine = [i for i in range(len(facts)) if is_mine(i // settings.batch_size)]
        fired = fired_rows(firings, mine, shared=True) if firings is not None else {}
    rows = rows_digest([[astuple(fact) for fact in facts], tokens, settings.chat_template])
    return recall_figures(found, fired, side, data, rows, it.notes)


def check_answers(facts: Sequence[Fact], what: str) -> None:
    """Raise if a fact has no answers or an empty one.

    Raises:
        UnlearnError: The message names the first such fact.
    """
    bare = next((fact for fact in facts if not fact.answers or not all(map(str.strip, fact.answers))), None)
    if bare is not None:
        raise UnlearnError(
            f"{what}: answers={bare.answers!r} of {bare.prompt[:60]!r}: expected at least one text, none empty."
        )


def recall_figures(
    found: Sequence[Recall], fired: Mapping[str, Tensor], side: str, data: str, rows: str, notes: list[str]
) -> list[Figure]:
    """Return the figures of given completions.

    Args:
        found (sequence of Recall): The completions.
        fired (mapping): Firings on each of them by guardrail, `[n]` bool. Empty without guardrails.
        side (str): "forget" or "retain".
        data (str): Name of the set.
        rows (str): Digest of the prompts.
        notes (list of str): Receives a line if ROUGE-L is skipped.
    """
    figure = partial(figure_of_rows, side, data, subjects=[one.fact.subject for one in found], rows=rows)
    exact = [is_right(one.completion, one.fact.answers[:1]) for one in found]
    figures = [
        figure("exact_recall", "share", torch.tensor(exact)),
        figure("alias_recall", "share", torch.tensor([one.right for one in found])),
    ]
    try:
        scores = rouge_l(found)
        figures += [figure("rouge_l_recall", "score", scores.recall), figure("rouge_l_f1", "score", scores.f1)]
    except ImportError as error:
        notes.append(f"{side}, {data}: skipped ROUGE-L. {error}")
    figures.append(figure("refusals", "share", torch.tensor([verdict(one) == "refused" for one in found])))
    return figures + [figure(f"fires:{name}", "share", rates) for name, rates in fired.items()]


_UNCUT = 2**20  # tokens: questions are not cut, unlike texts


def choice_figures(
    it: Measurement,
    choices: Sequence[Choice],
    side: str,
    data: str,
    orders: int | None = None,
    reference: Report | None = None,
) -> list[Figure]:
    """Return accuracy by log-probability, and accuracy by letter or the truth ratios.

    Letters are measured if the options are shown, truth ratios if they are not.

    Args:
        it (Measurement): The measured model.
        choices (sequence of Choice): The questions.
        side (str): "forget" or "retain".
        data (str): Name of the set.
        orders (int, *optional*): Orders of the options in which letters are asked for. None takes as many as there are
            options.
        reference (Report, *optional*): Report of a model that never saw the forget set, on the same questions. It adds
            the forget quality.

    Raises:
        UnlearnError: If the options of only some questions are shown, or `reference` has no truth ratios of them.
    """
    if len({choice.shown for choice in choices}) > 1:
        raise UnlearnError(
            f"{side}, {data}: expected the options of all questions shown, or of none. Pass them as two sets."
        )
    shown = choices[0].shown
    model, tokenizer, settings = it.model, it.tokenizer, it.settings
    rows = rows_digest([[astuple(choice) for choice in choices], settings.chat_template])
    figure = partial(figure_of_rows, side, data, subjects=[choice.subject for choice in choices], rows=rows)
    likelihoods = option_likelihoods(
        model,
        tokenizer,
        choices,
        batch_size=settings.batch_size,
        chat_template=settings.chat_template,
        progress=settings.bar(side, data, "options"),
        shared=True,
    )
    figures = [
        figure("likelihood_accuracy", "share", right_by_likelihood(choices, likelihoods)),
        figure(
            "likelihood_accuracy_per_character", "share", right_by_likelihood(choices, likelihoods, per_character=True)
        ),
    ]
    if shown:
        hits = right_by_letter(
            model,
            tokenizer,
            choices,
            orders=orders,
            batch_size=settings.batch_size,
            chat_template=settings.chat_template,
            progress=settings.bar(side, data, "letters"),
            shared=True,
        )
        in_orders = rows_digest([rows, hits.shape[1]])
        # a question with fewer options repeats some orders, which do not count
        means = torch.stack([row[: len(c.options)].mean() for row, c in zip(hits, choices, strict=True)])
        figures.append(figure("letter_accuracy", "share", means, rows=in_orders))
        figures.append(figure("letter_accuracy_as_given", "share", hits[:, 0]))
    else:
        ratios = log_truth_ratios(choices, likelihoods)
        figures.append(figure("truth_ratio", "ratio", ratios))
        if side == "retain":
            figures.append(figure("truth_score", "score", truth_scores(ratios)))
        elif reference is not None:
            figures += _quality(figures[-1], reference)
    if it.guarded:
        prompts = [
            question_prompt(tokenizer, lettered(choice) if shown else choice.question, settings.chat_template)
            for choice in choices
        ]
        bar = settings.bar(side, data, "gate")
        fired = row_firings(
            model, tokenizer, prompts, batch_size=settings.batch_size, max_length=_UNCUT, progress=bar, shared=True
        )
        figures += [figure(f"fires:{name}", "share", rates) for name, rates in fired.items()]
    return figures


def _quality(ratios: Figure, reference: Report) -> list[Figure]:
    other = next((f for f in reference.figures if f.metric == "truth_ratio" and f.rows == ratios.rows), None)
    if other is None:
        raise UnlearnError(
            f"reference={reference.title!r}: expected truth ratios of {ratios.side}/{ratios.data}. "
            "Evaluate the reference "
            "model on the same questions with the same settings."
        )
    quality = forget_quality(torch.tensor(ratios.values), torch.tensor(other.values))
    return [
        Figure(ratios.side, ratios.data, "ks_distance", "score", quality.distance, rows=ratios.rows),
        Figure(ratios.side, ratios.data, "forget_quality", "p", quality.p_value, rows=ratios.rows),
    ]


def text_figures(it: Measurement, texts: Sequence[str], side: str, data: str) -> list[Figure]:
    """Return perplexity over all tokens of the texts, and the mean over texts of the KL per token.

        perplexity = exp( sum_i n_i loss_i / sum_i n_i ),   n_i predicted tokens of text i

    KL is measured to `it.base`, or to a `PeftModel` with its adapters disabled; for other models there is none.

    Args:
        it (Measurement): The measured model.
        texts (sequence of str): The texts.
        side (str): "forget" or "retain".
        data (str): Name of the set.
    """
    model, tokenizer, settings = it.model, it.tokenizer, it.settings
    rows = rows_digest([list(texts), settings.max_length])
    figure = partial(figure_of_rows, side, data, subjects=[""] * len(texts), rows=rows)
    sizes = {"batch_size": settings.batch_size, "max_length": settings.max_length}
    losses = row_losses(model, tokenizer, texts, **sizes, progress=settings.bar(side, data, "perplexity"), shared=True)
    counts = predicted_counts(tokenizer, texts, settings.max_length)
    figures = [figure("perplexity", "perplexity", losses, weights=counts)]
    if it.compares:
        divergences = row_divergences(
            model, tokenizer, texts, base=it.base, **sizes, progress=settings.bar(side, data, "KL"), shared=True
        )
        figures.append(figure("kl", "nats", divergences))
    if it.guarded:
        fired = row_firings(model, tokenizer, texts, **sizes, progress=settings.bar(side, data, "gate"), shared=True)
        figures += [figure(f"fires:{name}", "share", rates) for name, rates in fired.items()]
    return figures


def predicted_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Tensor:
    """Return the number of predicted tokens of each text, `[n]`."""
    counts = torch.zeros(len(texts), dtype=torch.long)
    for batch in predicted_tokens(tokenizer, texts, 64, max_length):
        counts[batch.index] = torch.tensor(batch.counts)
    return counts
