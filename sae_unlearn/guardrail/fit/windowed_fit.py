"""Fit of the windowed gate on encoded rows: score, constants and threshold, and its measurements."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    at_lengths,
    calibrate,
    out_of_fold,
    padded,
    statistics,
)
from sae_unlearn.guardrail.fit.gate_score import FeatureScore, fit_features
from sae_unlearn.guardrail.gate.windowed import WindowedParameters
from sae_unlearn.stats import auc


class EncodedCorpus(NamedTuple):
    """Rows of a corpus: active features, and the number of each row's document, `[rows]` int64."""

    active: ActiveFeatures
    documents: Tensor


class WindowedFit(NamedTuple):
    """A fitted gate, and the out-of-fold scores of its calibration."""

    score: FeatureScore
    calibrated: Calibrated
    scores: OutOfFold


def fit_windowed(
    topic: EncodedCorpus,
    other: EncodedCorpus,
    gate_features: int,
    alpha: float,
    margin: float,
    min_tokens: int,
    longest: int = LONGEST,
) -> WindowedFit:
    """Fit at most `gate_features` weights on all rows, and calibrate at a rate `alpha` of false alarms.

    The rate holds for other text of up to `longest` tokens.

    Raises:
        GuardrailError: If there are too few documents, or the topic's tokens do not score above others.
    """

    def scored_without(
        fit_topic: Tensor, fit_other: Tensor, rows_topic: Tensor, rows_other: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        score = fit_features(topic.active.rows(fit_topic), other.active.rows(fit_other), gate_features)
        held = topic.active.rows(rows_topic), other.active.rows(rows_other)
        return held[0].split(score.of(held[0])), held[1].split(score.of(held[1]))

    scores = out_of_fold(topic.documents, other.documents, scored_without)
    calibrated = calibrate(scores, alpha, margin, min_tokens, longest)
    return WindowedFit(fit_features(topic.active, other.active, gate_features), calibrated, scores)


def row_values(rows: Sequence[Tensor], parameters: WindowedParameters) -> Tensor:
    """Return `[rows]`: the statistic of rows of scores."""
    return statistics(padded(rows), parameters) if rows else torch.zeros(0)


def figures(fit: WindowedFit) -> dict[str, Any]:
    """Return measurements of the gate on out-of-fold rows, as plain data for the config.

    Returns:
        `auroc` and `auroc_short` (of the first 20 tokens); and `by_length`, by the number of tokens and for whole rows
        (`"all"`): `forget` and `retain`, the share of rows that fire, and `spread`, the smallest and the largest share
        among the four folds of documents, which estimates the effect of another draw of documents. Rows of 160 and 320
        tokens are joined rows; for the topic, they are the first tokens of a topic row after other text.
    """
    parameters, threshold = fit.calibrated.parameters, fit.calibrated.threshold
    found: dict[str, Any] = {}
    for name, length in (("auroc", None), ("auroc_short", PREFIXES[0])):
        topic, other = ([row[:length] for row in rows] for rows in fit.scores)
        found[name] = round(auc(row_values(topic, parameters), row_values(other, parameters)), 4)
    samples = {
        "all": (fit.scores.topic, fit.scores.other),
        **{
            str(length): (
                _behind(fit.scores, length) if length in JOINED else [row[:length] for row in fit.scores.topic],
                other,
            )
            for length, other in zip((*PREFIXES, *JOINED), at_lengths(fit.scores.other), strict=True)
        },
    }
    found["by_length"] = {
        length: {
            "forget": _share(row_values(topic, parameters) > threshold),
            "retain": _share(row_values(other, parameters) > threshold),
        }
        for length, (topic, other) in samples.items()
    }
    return found


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the figures in sentences."""
    rows, short = found["by_length"]["all"], found["by_length"][str(PREFIXES[0])]
    long = found["by_length"][str(JOINED[-1])]
    return [
        f"On documents held out from the weights, AUROC is {found['auroc']:.3f} of rows and "
        f"{found['auroc_short']:.3f} of their first {PREFIXES[0]} tokens.",
        f"The gate fires on {_said(rows['forget'])} of forget rows, {_said(short['forget'])} of their first "
        f"{PREFIXES[0]} tokens and {_said(long['forget'])} of those after other text, {JOINED[-1]} tokens in all.",
        f"False alarms: {_said(rows['retain'])} of retain rows, {_said(short['retain'])} of their first {PREFIXES[0]} "
        f"tokens, {_said(long['retain'])} of {JOINED[-1]} tokens of them.",
        "In brackets: the lowest and highest share among four parts of the documents. Expect another draw of documents "
        "to move the shares about as far.",
    ]


def _behind(scores: OutOfFold, length: int) -> list[Tensor]:
    """Return the first 20 tokens of each topic row after other rows, `length` tokens in all."""
    filler = torch.cat([*scores.other] * (1 + length * len(scores.topic) // max(1, sum(map(len, scores.other)))))
    found = []
    for i, row in enumerate(scores.topic):
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
