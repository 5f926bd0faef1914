"""Constants and threshold of the windowed statistic, from out-of-fold scores.

Documents are split into four folds. Weights fitted on three of them score the fourth, so every row of both corpora has
*out-of-fold* scores and is used for the weights and for the threshold. With `m0` and `m1` the mean of those scores over
tokens of other text and of the topic (the symbols are those of `gate.windowed`):

    mu = m0            d = m0 + 0.8 (m1 - m0), to the nearest sixteenth
    A, B               least squares of Var(mean of the first n tokens) = A + B / n over n = 8, 16, 32, 64
    q_z                the (1 - a) quantile of (H - m0 N) / n / sqrt(A + B / n), the largest over lengths
    q_c                that of P, and at least that of P over `longest` tokens by its tail
                       A q_z^2 and B q_z^2 are stored, the latter at least 1e-12
    t                  the (1 - a) quantile of S = max(z / q_z, P / q_c), the largest over lengths

The lengths are the first 20, 40 and 80 tokens of each row of other text, and 160 and 320 tokens of rows joined. The
largest over lengths keeps false alarms at or below `a` at each of them.

P never falls, so longer text needs a larger q_c, and the rows are too few to count which P a share `a` of texts of
T = `longest` tokens exceeds. The equation of P gives it: P is the largest *excursion* of Y above its running minimum.
An excursion begins again at each minimum, so those of other text are nearly independent, and their heights have an
exponential tail (Cramer 1930). With `u` the height that K of the excursions in M tokens of other text exceed, `e` their
mean excess over it, and x > 0:

    Pr(height > u + x | height > u) = (1 + x / (K e))^-K         exp(-x / e), if `e` is estimated from K excursions
    Pr(P > u + x after T tokens)    = 1 - exp(-T K / M (1 + x / (K e))^-K)
    q_c of T                        = u + K e ((T K / M / -log(1 - a))^(1 / K) - 1)

K is 20, or -log(1 - a) M / T if that is more: then q_c is `u`.

If paragraphs are judged, too, `fit.paragraphs` gives their weight. The threshold stays as it is without them.

The threshold is then raised towards the topic:

    threshold = t + margin max(0, lower quartile of S over the topic's rows, of their first 20 tokens, - t)
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.groups import LEAST_VARIANCE
from sae_unlearn.guardrail.config_parts.validation import DRIFT_STEP
from sae_unlearn.guardrail.fit.paragraphs import COUNTS, highest, paragraphs_of, values_of
from sae_unlearn.guardrail.gate.message_statistic import by_message
from sae_unlearn.guardrail.gate.windowed import WindowedParameters, mean_part, message_part, windowed_value


FOLDS = 4
SPREAD_LENGTHS = (8, 16, 32, 64)
PREFIXES, JOINED = (20, 40, 80), (160, 320)
LONGEST = 1280
"""Tokens of other text up to which `alpha` holds."""
TAIL_EXCURSIONS = 20
"""Smallest K of the tail of P."""
DRIFT_SHARE = 0.8
FEWEST_ROWS = 8
_SMALLEST = 1e-6


class OutOfFold(NamedTuple):
    """Scores of rows by weights that were fitted without them, `[tokens]` for each row.

    Attributes:
        topic, other (list[Tensor]): The scores.
        topic_ends, other_ends (list[Tensor], *optional*): `[tokens]` bool for each row, True where a paragraph ends,
            which the last token of a row does. None: the gate judges no paragraphs.
    """

    topic: list[Tensor]
    other: list[Tensor]
    topic_ends: list[Tensor] | None = None
    other_ends: list[Tensor] | None = None

    @property
    def paragraphs(self) -> list[Tensor]:
        """Paragraphs of other text; empty if the gate judges none."""
        return [] if self.other_ends is None else paragraphs_of(self.other, self.other_ends)


class Calibrated(NamedTuple):
    """The constants of the statistic and its threshold, and the lowest one, without the margin."""

    parameters: WindowedParameters
    threshold: float
    lowest: float


def out_of_fold(
    topic_documents: Tensor,
    other_documents: Tensor,
    scored_without: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[list[Tensor], list[Tensor]]],
) -> OutOfFold:
    """Return the out-of-fold scores of all rows.

    Args:
        topic_documents (Tensor): Number of the document of each row of the topic, `[rows]` int64.
        other_documents (Tensor): Number of the document of each other row, `[rows]` int64.
        scored_without (Callable): Function from the numbers of the rows to fit on and of those to score (`fit_topic,
            fit_other, topic, other`, `[rows]` int64 each) to the scores of the latter, of the topic and of other text.

    Raises:
        GuardrailError: If a corpus has fewer than eight documents, two for each fold.
    """
    for name, numbers in (("forget", topic_documents), ("retain", other_documents)):
        found = len(numbers.unique())
        if found < 2 * FOLDS:
            raise GuardrailError(f"{name}={found} documents: expected at least {2 * FOLDS}. Pass more texts.")
    topic: list[Any] = [None] * len(topic_documents)
    other: list[Any] = [None] * len(other_documents)
    for fold in range(FOLDS):
        held = [documents % FOLDS == fold for documents in (topic_documents, other_documents)]
        fitted = [(~out).nonzero()[:, 0] for out in held]
        scored = [out.nonzero()[:, 0] for out in held]
        for into, rows, scores in zip((topic, other), scored, scored_without(*fitted, *scored), strict=True):
            for row, values in zip(rows.tolist(), scores, strict=True):
                into[row] = values
    return OutOfFold([row for row in topic if len(row)], [row for row in other if len(row)])


def calibrate(
    scores: OutOfFold,
    alpha: float,
    margin: float,
    min_tokens: int = 8,
    longest: int = LONGEST,
    tail: int = TAIL_EXCURSIONS,
) -> Calibrated:
    """Return the constants and the threshold by the equations above, at a rate `alpha` of false alarms.

    Args:
        scores (OutOfFold): The out-of-fold scores of both corpora.
        alpha (float): Share of rows of other text that may fire, between 0 and 1.
        margin (float): Share of the way from the lowest threshold to the topic, 0 to 1.
        min_tokens (int, *optional*, defaults to 8): Shorter rows are judged as if they had this many tokens.
        longest (int, *optional*, defaults to LONGEST): Tokens of other text up to which `alpha` holds. A larger number
            keeps false alarms of long texts down and catches less.
        tail (int, *optional*, defaults to TAIL_EXCURSIONS): Smallest K of the tail of P.

    Raises:
        GuardrailError: If the topic's tokens do not score above other tokens.
    """
    m0, m1 = (float(torch.cat(rows).double().mean()) for rows in (scores.other, scores.topic))
    drift = round((m0 + DRIFT_SHARE * (m1 - m0)) / DRIFT_STEP) * DRIFT_STEP
    if not drift > m0:
        raise GuardrailError(
            f"forget: out of fold its tokens score {m1:.3g} and other tokens {m0:.3g}, so a gate cannot separate them. "
            "Pass more text of the topic, or text of one topic."
        )
    row_variance, token_variance = variance_of_means(scores.other)
    plain = WindowedParameters(m0, row_variance, token_variance, drift, 1.0, min_tokens)
    samples = [padded(rows) for rows in at_lengths(scores.other)]
    means = [mean_part(sample.hits, sample.tokens, plain)[:, -1] for sample in samples]
    sums = [peaks(sample, plain) for sample in samples]
    q_z, q_c = (max(_SMALLEST, *(_quantile(values, 1 - alpha) for values in some)) for some in (means, sums))
    q_c = max(q_c, peak_quantile(excursions(scores.other, drift), sum(map(len, scores.other)), longest, alpha, tail))
    token_variance = max(LEAST_VARIANCE, token_variance * q_z**2)  # scores of other text may all be equal
    found = plain._replace(row_variance=row_variance * q_z**2, token_variance=token_variance, sum_weight=1 / q_c)
    if scores.other_ends is not None:
        found = found._replace(message_weight=message_weight(scores.paragraphs, found, alpha, tail))
    lowest = max(_quantile(statistics(sample, found), 1 - alpha) for sample in samples)
    topic = statistics(first_tokens(scores.topic, None, PREFIXES[0]), found)
    return Calibrated(found, lowest + margin * max(0.0, _quantile(topic, 0.25) - lowest), lowest)


def message_weight(paragraphs: Sequence[Tensor], parameters: WindowedParameters, alpha: float, tail: int) -> float:
    """Return `lambda`, the weight of a paragraph against a row; see `fit.paragraphs`.

    Args:
        paragraphs (Sequence[Tensor]): Scores of paragraphs of other text, `[tokens]` each.
        parameters (WindowedParameters): The constants, scaled for rows.
        alpha (float): Share of documents of other text that may fire, between 0 and 1.
        tail (int): Smallest K of the tail.
    """
    values = values_of(paragraphs, parameters)
    counted = max(_quantile(highest(values, count), 1 - alpha) for count in COUNTS)
    by_tail = peak_quantile(values.sort(descending=True).values.double(), len(values), COUNTS[-1], alpha, tail)
    return 1 / max(1.0, counted, by_tail)


def at_lengths(rows: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return rows at each length of `PREFIXES` (first tokens) and of `JOINED` (joined, from each row on)."""
    text = torch.cat([*rows, *rows])
    while len(text) < sum(map(len, rows)) + JOINED[-1]:
        text = torch.cat([text, text])
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0)[:-1].tolist()
    prefixes = [[row[:length] for row in rows] for length in PREFIXES]
    return prefixes + [[text[start : start + length] for start in starts] for length in JOINED]


def excursions(rows: Sequence[Tensor], drift: float) -> Tensor:
    """Return the heights of the excursions of `Y` above its running minimum over rows joined, descending."""
    y = (torch.cat([*rows]).double() - drift).cumsum(0)
    height = y - y.cummin(0).values.clamp(max=0)
    heights = torch.zeros(len(y) + 1, dtype=torch.float64)
    heights.scatter_reduce_(0, (height == 0).cumsum(0), height, "amax")
    return heights[heights > 0].sort(descending=True).values


def peak_quantile(heights: Tensor, tokens: int, length: int, alpha: float, number: int) -> float:
    """Return the value that `P` exceeds in a share `alpha` of texts, by the tail of its excursions.

    Args:
        heights (Tensor): Heights of the excursions in `tokens` tokens of other text, descending.
        tokens (int): M.
        length (int): T, tokens of a text.
        alpha (float): Share of texts, between 0 and 1.
        number (int): Smallest K. At most half of the excursions are used.
    """
    rate = -math.log1p(-alpha) / length
    number = min(max(number, int(rate * tokens)), len(heights) // 2)
    if number == 0:
        return 0.0
    u = float(heights[number])
    excess = float(heights[:number].mean()) - u
    times = max(1.0, number / tokens / rate)
    return u + number * excess * (times ** (1 / number) - 1)


def variance_of_means(rows: Sequence[Tensor]) -> tuple[float, float]:
    """Return `A >= 0` and `B > 0` of `Var(mean of the first n tokens) = A + B / n`, by least squares.

    Lengths that fewer than 8 rows have are left out. If at most one length is left, `A` is 0.
    """
    lengths = [n for n in SPREAD_LENGTHS if sum(len(row) >= n for row in rows) >= FEWEST_ROWS]
    found = [torch.stack([row[:n].double().mean() for row in rows if len(row) >= n]).var() for n in lengths]
    if len(lengths) < 2:
        n = lengths[0] if lengths else 1
        spread = found[0] if found else torch.cat([*rows]).double().var()
        return 0.0, max(_SMALLEST, float(spread) * n)
    x, y = 1 / torch.tensor(lengths, dtype=torch.float64), torch.stack(found)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return max(_SMALLEST, float(y.mean() - slope * x.mean())), max(_SMALLEST, float(slope))


class Padded(NamedTuple):
    """`H` and `N` along rows, `[rows, longest]`; after a row's end both stay as they are.

    `ends [rows, longest]` is True where a paragraph ends; None if the gate judges none.
    """

    hits: Tensor
    tokens: Tensor
    ends: Tensor | None = None


def padded(rows: Sequence[Tensor], ends: Sequence[Tensor] | None = None) -> Padded:
    """Return the running sums of rows, and where their paragraphs end."""
    scores = pad_sequence([row.float() for row in rows], batch_first=True)
    there = torch.arange(scores.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    last = None if ends is None else pad_sequence([*ends], batch_first=True)
    return Padded(scores.cumsum(dim=1), there.float().cumsum(dim=1), last)


def first_tokens(rows: Sequence[Tensor], ends: Sequence[Tensor] | None, length: int | None) -> Padded:
    """Return the first `length` tokens of rows, or all of them, as `padded` does."""
    return padded([row[:length] for row in rows], None if ends is None else [last[:length] for last in ends])


def statistics(rows: Padded, parameters: WindowedParameters) -> Tensor:
    """Return `[rows]`: `S` at each row's end, of its paragraphs, too, if `rows` says where they end."""
    value = windowed_value(rows.hits, rows.tokens, parameters, None, None)[0]
    if rows.ends is not None:
        part = partial(message_part, parameters=parameters)
        value = by_message(value, rows.hits, rows.tokens, rows.ends, part, None).value
    return value[:, -1]


def peaks(rows: Padded, parameters: WindowedParameters) -> Tensor:
    """Return `[rows]`: `P` at each row's end."""
    return windowed_value(rows.hits, rows.tokens, parameters, None, None)[2][:, -1]


def _quantile(values: Tensor, share: float) -> float:
    return float(torch.quantile(values.double(), share))
