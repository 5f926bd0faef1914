"""Figures of a report: measurements with their interval and the rows they come from."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sae_unlearn.checks import check_choice
from sae_unlearn.evaluation.report.estimate import Estimate, finite, number
from sae_unlearn.evaluation.report.files import read_as
from sae_unlearn.files.digest import sha256
from sae_unlearn.stats import percentile_interval, ratio_draws, wilson_interval


Unit = Literal["share", "score", "nats", "perplexity", "ratio", "p"]
"""Unit of a figure.

share: of successes, 0 to 1. score: a mean of scores, 0 to 1. nats: a mean. perplexity, ratio: the exponential of a mean
of logarithms. p: a p-value.
"""

_EXPONENTIAL = ("perplexity", "ratio")

TITLES = {
    "exact_recall": "recall, canonical answer",
    "alias_recall": "recall, any accepted answer",
    "rouge_l_recall": "ROUGE-L recall",
    "rouge_l_f1": "ROUGE-L F1",
    "refusals": "refusals",
    "likelihood_accuracy": "accuracy by log-probability",
    "likelihood_accuracy_per_character": "accuracy by log-probability per character",
    "letter_accuracy": "accuracy by letter, over option orders",
    "letter_accuracy_as_given": "accuracy by letter, options as given",
    "truth_ratio": "truth ratio R, geometric mean",
    "truth_score": "truth score, max(0, 1 - R)",
    "probability": "probability of the true answer, per token",
    "ks_distance": "KS distance of R to the reference",
    "forget_quality": "forget quality (p of the KS test)",
    "perplexity": "perplexity",
    "kl": "KL to the base, nats per token",
    "interference": "change of loss by the other guardrails, nats per token",
}


@dataclass(frozen=True)
class Figure:
    """A measured number of one set of data.

    Attributes:
        side (str): "forget" or "retain".
        data (str): Name of the set.
        metric (str): A key of `TITLES`, or "fires:" and the name of a guardrail.
        unit (Unit): See `Unit`.
        estimate (Estimate): The number, its 95 % interval and its n.
        values (tuple of float, *optional*, defaults to ()): One for each row, as logarithms if the unit is an
            exponential. Empty for figures that are not means over rows.
        weights (tuple of float, *optional*, defaults to ()): Weights of the rows, such as their tokens. Empty for equal
            weights.
        groups (tuple of int, *optional*, defaults to ()): Number of each row's subject. Rows of one subject are drawn
            together.
        rows (str, *optional*, defaults to ""): Digest of the rows, to match figures of the same data. No text is
            kept.
    """

    side: str
    data: str
    metric: str
    unit: Unit
    estimate: Estimate
    values: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    rows: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Side, data and metric, which identify the figure in its report."""
        return self.side, self.data, self.metric

    @property
    def title(self) -> str:
        """The metric in words."""
        if self.metric.startswith("fires:"):
            return f"gate fires ({self.metric.removeprefix('fires:')})"
        if self.metric.startswith("loss:"):
            return f"change of loss, nats per token ({self.metric.removeprefix('loss:')})"
        return TITLES.get(self.metric, self.metric)

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as a mapping that JSON can hold. Values that are not finite become None."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["estimate"] = self.estimate.to_dict()
        found["values"] = [finite(value) for value in self.values]
        return found | {"weights": list(self.weights), "groups": list(self.groups)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Figure":
        """Return the figure from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing, unknown or of another type; the message names it.
        """
        with read_as("figure of a report"):
            estimate = Estimate.from_dict(stored["estimate"])
            sequences = {
                "values": tuple(number(value) for value in stored["values"]),
                "weights": tuple(number(value) for value in stored["weights"]),
                "groups": tuple(int(value) for value in stored["groups"]),
            }
            found = cls(**(stored | sequences | {"estimate": estimate}))
        check_choice("unit", found.unit, get_args(Unit))
        return found


def figure_of_rows(
    side: str,
    data: str,
    metric: str,
    unit: Unit,
    values: Tensor,
    subjects: Sequence[str],
    rows: str,
    weights: Tensor | None = None,
) -> Figure:
    """Return a figure from a value for each row.

        share, score, nats:   m = sum_g mean_(i in g) v_i / (number of g)
        perplexity, ratio:    exp m;   with weights w:  m = sum_i w_i v_i / sum_i w_i

    Rows of one subject are one group g, and are drawn together. A share's interval is Wilson's, over groups. All other
    intervals are percentile bootstrap intervals.

    Args:
        side (str): "forget" or "retain".
        data (str): Name of the set.
        metric (str): See `Figure`.
        unit (Unit): See `Unit`.
        values (Tensor): `[n]`.
        subjects (sequence of str): Subject of each row, "" for an independent row.
        rows (str): Digest of the rows, see `rows_digest`.
        weights (Tensor, *optional*): `[n]`. None for equal weights.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    groups = group_numbers(subjects)
    found = Figure(
        side,
        data,
        metric,
        unit,
        Estimate(math.nan, math.nan, math.nan, 0),
        tuple(values.tolist()),
        () if weights is None else tuple(torch.as_tensor(weights, dtype=torch.float64).tolist()),
        tuple(groups),
        rows,
    )
    totals, of_group = group_sums(found)
    value = float(in_unit(totals.sum() / of_group.sum(), unit))
    if unit == "share":
        low, high = wilson_interval(min(float(totals.sum()), float(len(totals))), len(totals))
    else:
        low, high = percentile_interval(in_unit(ratio_draws(totals, of_group), unit))
    return Figure(**(found.__dict__ | {"estimate": Estimate(value, low, high, len(totals))}))


def group_sums(figure: Figure) -> tuple[Tensor, Tensor]:
    """Return weighted sums of a figure's values and sums of their weights by group, `[groups]` each."""
    values = torch.tensor(figure.values, dtype=torch.float64)
    groups = torch.tensor(figure.groups)
    sizes = torch.bincount(groups).double()
    weights = torch.tensor(figure.weights, dtype=torch.float64) if figure.weights else 1 / sizes[groups]
    empty = torch.zeros(len(sizes), dtype=torch.float64)
    return empty.index_add(0, groups, weights * values), empty.index_add(0, groups, weights)


def in_unit(means: Tensor, unit: Unit) -> Tensor:
    """Return means of values in the unit of the figure."""
    return means.exp() if unit in _EXPONENTIAL else means


def group_numbers(subjects: Sequence[str]) -> list[int]:
    """Return a number for each row, equal for rows of one subject.

    Rows without a subject ("") have numbers of their own.
    """
    names = [subject or i for i, subject in enumerate(subjects)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def rows_digest(rows: Sequence[Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of rows as JSON."""
    return sha256(json.dumps(list(rows), ensure_ascii=False).encode())[:16]
