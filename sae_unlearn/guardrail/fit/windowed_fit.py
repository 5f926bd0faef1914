"""Fit of the windowed gate on encoded rows: score, constants and threshold, and its measurements."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sae_unlearn.guardrail.fit.active_features import ActiveFeatures
from sae_unlearn.guardrail.fit.cross_calibration import (
    FOLDS,
    JOINED,
    LONGEST,
    PREFIXES,
    Calibrated,
    OutOfFold,
    Padded,
    at_lengths,
    calibrate,
    first_tokens,
    out_of_fold,
    padded,
    statistics,
)
from sae_unlearn.guardrail.fit.direction_score import DirectionScore, ResidualTokens
from sae_unlearn.guardrail.fit.gate_score import FeatureScore
from sae_unlearn.guardrail.fit.paragraphs import COUNTS, documents
from sae_unlearn.guardrail.gate.windowed import WindowedParameters
from sae_unlearn.stats import auc


GateTokens: TypeAlias = ActiveFeatures | ResidualTokens
GateScore: TypeAlias = FeatureScore | DirectionScore


class EncodedCorpus(NamedTuple):
    """Rows of a corpus: their tokens as the gate reads them, and the numbers of their documents.

    `documents` is `[rows]` int64, the number of each row's document. `ends` is `[tokens]` bool for each row, True where
    a paragraph ends; None if the gate judges none.
    """

    tokens: GateTokens
    documents: Tensor
    ends: list[Tensor] | None = None


class WindowedFit(NamedTuple):
    """A fitted gate, and the out-of-fold scores of its calibration."""

    score: GateScore
    calibrated: Calibrated
    scores: OutOfFold


def fit_windowed(
    topic: EncodedCorpus,
    other: EncodedCorpus,
    fit_score: Callable[[Any, Any], GateScore],
    alpha: float,
    margin: float,
    min_tokens: int,
    longest: int = LONGEST,
) -> WindowedFit:
    """Fit the score on all rows, and calibrate at a rate `alpha` of false alarms.

    The rate holds for other text of up to `longest` tokens. `fit_score` is `fit_features` or `fit_direction`: it takes
    the tokens of both corpora.

    Raises:
        GuardrailError: If there are too few documents, or the topic's tokens do not score above others.
    """

    def scored_without(
        fit_topic: Tensor, fit_other: Tensor, rows_topic: Tensor, rows_other: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        score: Any = fit_score(topic.tokens.rows(fit_topic), other.tokens.rows(fit_other))
        held = topic.tokens.rows(rows_topic), other.tokens.rows(rows_other)
        return held[0].split(score.of(held[0])), held[1].split(score.of(held[1]))

    scores = out_of_fold(topic.documents, other.documents, scored_without)
    if topic.ends is not None and other.ends is not None:
        topic_ends, other_ends = ([end for end in ends if len(end)] for ends in (topic.ends, other.ends))
        scores = scores._replace(topic_ends=topic_ends, other_ends=other_ends)
    calibrated = calibrate(scores, alpha, margin, min_tokens, longest)
    return WindowedFit(fit_score(topic.tokens, other.tokens), calibrated, scores)


def row_values(
    rows: Sequence[Tensor], ends: Sequence[Tensor] | None, parameters: WindowedParameters, length: int | None = None
) -> Tensor:
    """Return `[rows]`: the statistic of rows of scores, or of their first `length` tokens."""
    return statistics(first_tokens(rows, ends, length), parameters) if rows else torch.zeros(0)


def figures(fit: WindowedFit) -> dict[str, Any]:
    """Return measurements of the gate on out-of-fold rows, as plain data for the config.

    Returns:
        `auroc` and `auroc_short` (of the first 20 tokens); and `by_length`, by the number of tokens and for whole rows
        (`"all"`): `forget` and `retain`, the share of rows that fire, and `spread`, the smallest and the largest share
        among the four folds of documents, which estimates the effect of another draw of documents. Rows of 160 and 320
        tokens are joined rows; for the topic, they are the first tokens of a topic row after other text. If the gate
        judges paragraphs, `by_paragraphs` is the share of documents that fire, by their number of paragraphs of other
        text, and `message_weight`.
    """
    parameters, threshold, scores = fit.calibrated.parameters, fit.calibrated.threshold, fit.scores
    sides = (scores.topic, scores.topic_ends), (scores.other, scores.other_ends)
    found: dict[str, Any] = {}
    for name, length in (("auroc", None), ("auroc_short", PREFIXES[0])):
        topic, other = (row_values(*side, parameters, length) for side in sides)
        found[name] = round(auc(topic, other), 4)
    values = {"all": tuple(row_values(*side, parameters) for side in sides)}
    lengths = at_lengths(scores.other)
    ends = [None] * len(lengths) if scores.other_ends is None else at_lengths(scores.other_ends)
    for length, rows, last in zip((*PREFIXES, *JOINED), lengths, ends, strict=True):
        some = _behind(scores, length) if length in JOINED else first_tokens(*sides[0], length)
        values[str(length)] = statistics(some, parameters), row_values(rows, last, parameters)
    found["by_length"] = {
        length: {role: _share(some > threshold) for role, some in zip(("forget", "retain"), both, strict=True)}
        for length, both in values.items()
    }
    if scores.other_ends is not None:
        found["message_weight"] = round(parameters.message_weight, 4)
        found["by_paragraphs"] = {
            str(count): _share(row_values(*documents(scores.paragraphs, count), parameters) > threshold)
            for count in COUNTS
        }
    return found


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the figures in sentences."""
    rows, short = found["by_length"]["all"], found["by_length"][str(PREFIXES[0])]
    long = found["by_length"][str(JOINED[-1])]
    by_paragraphs = found.get("by_paragraphs", {}).items()
    return [
        f"On documents held out from the weights, AUROC is {found['auroc']:.3f} of rows and "
        f"{found['auroc_short']:.3f} of their first {PREFIXES[0]} tokens.",
        f"The gate fires on {_said(rows['forget'])} of forget rows, {_said(short['forget'])} of their first "
        f"{PREFIXES[0]} tokens and {_said(long['forget'])} of those after other text, {JOINED[-1]} tokens in all.",
        f"False alarms: {_said(rows['retain'])} of retain rows, {_said(short['retain'])} of their first {PREFIXES[0]} "
        f"tokens, {_said(long['retain'])} of {JOINED[-1]} tokens of them.",
        "In brackets: the lowest and highest share among four parts of the documents. Expect another draw of documents "
        "to move the shares about as far.",
        *(
            [
                "Of documents of other text in paragraphs it fires on "
                + ", ".join(f"{share['share']:.1%} ({count})" for count, share in by_paragraphs)
                + ", by the number of paragraphs."
            ]
            if by_paragraphs
            else []
        ),
    ]


def _behind(scores: OutOfFold, length: int) -> Padded:
    """Return the first 20 tokens of each topic row after other rows, `length` tokens in all.

    The topic begins a paragraph, if the gate judges them.
    """
    rows = _after(scores.topic, scores.other, length)
    if scores.topic_ends is None or scores.other_ends is None:
        return padded(rows)
    ends = _after(scores.topic_ends, scores.other_ends, length)
    for end, row in zip(ends, scores.topic_ends, strict=True):
        end[length - len(row[: PREFIXES[0]]) - 1] = True
    return padded(rows, ends)


def _after(topic: Sequence[Tensor], other: Sequence[Tensor], length: int) -> list[Tensor]:
    """Return the first 20 values of each topic row after values of other rows, `length` in all."""
    filler = torch.cat([*other] * (1 + length * len(topic) // max(1, sum(map(len, other)))))
    found = []
    for i, row in enumerate(topic):
        short = row[: PREFIXES[0]]
        number = length - len(short)
        start = i * number % (len(filler) - number + 1)
        found.append(torch.cat([filler[start : start + number], short]))
    return found


def _share(fires: Tensor) -> dict[str, Any]:
    parts = [float(part.double().mean()) for part in (fires[fold::FOLDS] for fold in range(FOLDS)) if len(part)]
    return {
        "share": round(float(fires.double().mean()), 4),
        "n": len(fires),
        "spread": [round(min(parts), 4), round(max(parts), 4)],
    }


def _said(share: dict[str, Any]) -> str:
    low, high = share["spread"]
    return f"{share['share']:.1%} ({low:.1%} to {high:.1%})"
