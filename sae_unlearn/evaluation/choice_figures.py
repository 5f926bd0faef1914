"""The figures of a set of choices: accuracy by probability and by letter, truth ratio, and where the gate fires."""

from collections.abc import Sequence
from dataclasses import astuple
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.evaluation.choice import Choice, lettered
from sae_unlearn.evaluation.metrics.choices import option_likelihoods, right_by_letter, right_by_likelihood
from sae_unlearn.evaluation.metrics.firing import row_firings
from sae_unlearn.evaluation.metrics.truth_ratio import forget_quality, log_truth_ratios, truth_scores
from sae_unlearn.evaluation.prompting import question_prompt
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, fingerprint
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.evaluation.settings import Settings
from sae_unlearn.guardrail.model import guard_layers


_UNCUT = 2**20  # tokens; questions are read whole, whatever the texts are cut to


def choice_figures(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    side: str,
    data: str,
    settings: Settings,
    reference: Report | None = None,
) -> list[Figure]:
    """Accuracy by log-probability of every set; by letter where options are shown; truth ratios where they are not.

    Args:
        reference: report of a model that never saw the forget set, evaluated on the same questions; with it, forget
            quality is told.

    Raises:
        ValueError: some options are shown and some are not; or `reference` holds no truth ratios of these questions.
    """
    if len({choice.shown for choice in choices}) > 1:
        raise ValueError(f"{side}, {data}: some options are shown and some are not; give them as two sets.")
    shown = choices[0].shown
    rows = fingerprint([[astuple(choice) for choice in choices], settings.chat_template])
    figure = partial(figure_of_rows, side, data, subjects=[choice.subject for choice in choices], rows=rows)
    likelihoods = option_likelihoods(
        model,
        tokenizer,
        choices,
        settings.batch_size,
        settings.chat_template,
        settings.bar(side, data, "options"),
        shared=True,
    )
    figures = [
        figure("likelihood_accuracy", "share", right_by_likelihood(choices, likelihoods)),
        figure("likelihood_accuracy_per_character", "share", right_by_likelihood(choices, likelihoods, True)),
    ]
    if shown:
        hits = right_by_letter(
            model,
            tokenizer,
            choices,
            settings.orders,
            settings.batch_size,
            settings.chat_template,
            settings.bar(side, data, "letters"),
            shared=True,
        )
        in_orders = fingerprint([rows, hits.shape[1]])
        # of a question with fewer options, the orders that only repeat others are left out
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
    if guard_layers(model):
        prompts = [
            question_prompt(tokenizer, lettered(choice) if shown else choice.question, settings.chat_template)
            for choice in choices
        ]
        bar = settings.bar(side, data, "gate")
        fired = row_firings(model, tokenizer, prompts, settings.batch_size, _UNCUT, bar, shared=True)
        figures += [figure(f"fires:{name}", "share", rates) for name, rates in fired.items()]
    return figures


def _quality(ratios: Figure, reference: Report) -> list[Figure]:
    other = next((f for f in reference.figures if f.metric == "truth_ratio" and f.rows == ratios.rows), None)
    if other is None:
        raise ValueError(
            f"The reference report {reference.title!r} holds no truth ratios of {ratios.side}/{ratios.data}; evaluate "
            "the reference model on the same questions, with the same settings."
        )
    quality = forget_quality(torch.tensor(ratios.values), torch.tensor(other.values))
    return [
        Figure(ratios.side, ratios.data, "ks_distance", "score", quality.distance, rows=ratios.rows),
        Figure(ratios.side, ratios.data, "forget_quality", "p", quality.p_value, rows=ratios.rows),
    ]
