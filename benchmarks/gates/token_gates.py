"""Gates that score tokens, fitted on encoded rows: the windowed one, a probe, today's default and the published one."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gates.encoded_rows import Encoded
from sae_unlearn.demo.model import load_demo_sae
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures, ranges
from sae_unlearn.guardrail.fit.calibration import between, percentile_threshold
from sae_unlearn.guardrail.fit.cross_calibration import OutOfFold, calibrate, padded, statistics
from sae_unlearn.guardrail.fit.direction_score import ResidualTokens, fit_direction
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.passes import FORGET_CYCLE, RETAIN_CYCLE
from sae_unlearn.guardrail.fit.selection import OUTLIER_FACTOR, FeatureSums, log_ratios, select_features
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, fit_windowed


ALPHA, MARGIN = 0.025, 0.25
Rows = list[Tensor]


class Rowset:
    """Some encoded rows."""

    def __init__(self, encoded: dict[str, Tensor]) -> None:
        self.encoded = Encoded(**encoded)
        self.active = ActiveFeatures(self.encoded.lengths, self.encoded.starts, self.encoded.features.int())

    def rows(self, chosen: Sequence[int]) -> "Rowset":
        """Some of them, in that order."""
        some = torch.tensor(chosen, dtype=torch.long)
        active, e = self.active.rows(some), self.encoded
        token = ranges((e.lengths.cumsum(0) - e.lengths)[some], e.lengths[some])
        entry = ranges(e.starts[token], e.starts.diff()[token])
        return Rowset(
            Encoded(
                active.lengths, active.starts, active.features, e.values[entry], e.residual[token], e.norms[token]
            )._asdict()
        )


class Gate(NamedTuple):
    """A fitted gate: the score of each token, the statistic of rows of scores, and the threshold."""

    score: Callable[[Rowset], Tensor]
    statistic: Callable[[Rows], Tensor]
    threshold: float


def windowed(topic: Rowset, other: Rowset) -> Gate:
    """The windowed gate, by the functions of the product."""
    corpora = [EncodedCorpus(part.active, torch.arange(len(part.encoded.lengths))) for part in (topic, other)]
    fit = fit_windowed(*corpora, fit_features, ALPHA, MARGIN, 8)
    return Gate(
        lambda rows: fit.score.of(rows.active),
        lambda rows: statistics(padded(rows), fit.calibrated.parameters),
        fit.calibrated.threshold,
    )


def probe(topic: Rowset, other: Rowset) -> Gate:
    """The same over a direction of the residual stream, which `gate_reads="direction"` fits."""
    limit = OUTLIER_FACTOR * float(other.encoded.norms.median())
    corpora = [
        EncodedCorpus(residual_tokens(part, limit), torch.arange(len(part.encoded.lengths))) for part in (topic, other)
    ]
    fit = fit_windowed(*corpora, fit_direction, ALPHA, MARGIN, 8)
    return Gate(
        lambda rows: fit.score.of(residual_tokens(rows, limit)),
        lambda rows: statistics(padded(rows), fit.calibrated.parameters),
        fit.calibrated.threshold,
    )


def residual_tokens(rows: Rowset, limit: float) -> ResidualTokens:
    """The residual stream of the tokens; those of norms above the limit are outlying."""
    encoded = rows.encoded
    return ResidualTokens(encoded.lengths, encoded.residual.float(), encoded.norms <= limit)


def calibrated(score: Callable[[Rowset], Tensor], scores: OutOfFold) -> Gate:
    """A gate with the windowed statistic."""
    found = calibrate(scores, ALPHA, MARGIN)
    return Gate(score, lambda rows: statistics(padded(rows), found.parameters), found.threshold)


def today(topic: Rowset, other: Rowset) -> Gate:
    """The default fit: 40 floored log-ratios and the mean over the row."""
    parts = [_by_use(topic, FORGET_CYCLE), _by_use(other, RETAIN_CYCLE)]
    sums = [sums_of(part["select"], OUTLIER_FACTOR) for part in parts]
    ids = select_features(*sums, 40, 99.0, "mean_squared")
    table = torch.zeros(sums[0].total.shape[0])
    table[ids] = torch.tensor(log_ratios(*sums, ids))

    def score(rows: Rowset) -> Tensor:
        return rows.active.scores(table)

    def statistic(rows: Rows) -> Tensor:
        return torch.stack([row.sum() / max(len(row), 8) for row in rows])

    high, low = (statistic(p["threshold"].active.split(score(p["threshold"]))) for p in parts)
    return Gate(score, statistic, between(percentile_threshold(low, 100 - 100 * ALPHA), high, MARGIN))


def published(topic: Rowset, other: Rowset) -> Gate:
    """`preset="faithful"`: 20 features, the share of all columns at which one is active, BOS among them."""
    sums = [sums_of(part, float("inf")) for part in (topic, other)]
    table = torch.zeros(sums[0].total.shape[0])
    table[select_features(*sums, 20, 95.0, "squared_mean")] = 1.0

    def score(rows: Rowset) -> Tensor:
        return (rows.active.scores(table) > 0).float()

    def statistic(rows: Rows) -> Tensor:
        return torch.stack([row.sum() / (len(row) + 1) for row in rows])

    return Gate(score, statistic, percentile_threshold(statistic(other.active.split(score(other))), 95.0))


GATES = {"windowed": windowed, "probe": probe, "today": today, "published": published}


def _by_use(rows: Rowset, cycle: tuple[str, ...]) -> dict[str, Rowset]:
    places = range(len(rows.encoded.lengths))
    return {use: rows.rows([i for i in places if cycle[i % len(cycle)] == use]) for use in ("select", "threshold")}


@cache
def _sae() -> Any:
    return load_demo_sae()


def sums_of(rows: Rowset, factor: float) -> FeatureSums:
    """The fit's sums over the tokens whose norm is at most `factor` times the median."""
    e, found = rows.encoded, FeatureSums(_sae())
    usual = e.norms <= factor * e.norms.median()
    kept = usual.repeat_interleave(e.starts.diff())
    ids, values = e.features[kept].long(), e.values[kept].double()
    found.tokens = int(usual.sum())
    found.total.index_add_(0, ids, values)
    found.squares.index_add_(0, ids, values.square())
    found.active.index_add_(0, ids, torch.ones_like(values))
    return found
