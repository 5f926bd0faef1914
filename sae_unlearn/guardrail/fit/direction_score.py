"""Token scores of the windowed gate from one direction of the residual stream, in place of features.

With `h_t` the output of the guarded layer,

    p_t = w . h_t + b
    s_t = p_t to the nearest quarter, within LOWEST and HIGHEST; 0 at outlying tokens

`w` and `b` come from the windows of `gate_score`, on the means of the residual stream in units of each dimension's
standard deviation over other text, clamped at `LIMIT`: outlying dimensions must not dominate a window. They minimize
the logistic loss plus `L2 / 2 |w|^2` in these units, and are scaled so that the standard deviation of `p` over tokens
of other text is 1.

The gate adds up the evidence of active rows of the encoder, so a direction becomes `LEVELS` of them. Level k is active
where `p` is beyond its edge:

    s_t = 1/4 sum_{k=1}^{4 HIGHEST} [p_t > (k - 1/2) / 4]  -  1/4 sum_{k=1}^{-4 LOWEST} [-p_t > (k - 1/2) / 4]

Row, bias and edge of all levels are multiplied by one number, which changes no decision: the rows then have the norm of
the guarded features' rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.guardrail.fit.active_features import ranges
from sae_unlearn.guardrail.fit.gate_score import SCORE_STEP, in_steps
from sae_unlearn.guardrail.fit.logistic import Windows, logistic
from sae_unlearn.guardrail.weights import EncoderRows


L2 = 1e-2
LIMIT = 8.0
LOWEST, HIGHEST = -4.0, 8.0
LEVELS = round((HIGHEST - LOWEST) / SCORE_STEP)


class ResidualTokens(NamedTuple):
    """The residual stream at the content tokens of some rows, the rows one after another.

    Attributes:
        lengths (Tensor): Tokens of each row, `[rows]` int64.
        residual (Tensor): `[tokens, d_in]` float32.
        usual (Tensor): False at outlying tokens, `[tokens]` bool.
    """

    lengths: Tensor
    residual: Tensor
    usual: Tensor

    def rows(self, chosen: Tensor) -> "ResidualTokens":
        """Return the rows `chosen [n]` int64, in that order."""
        tokens = ranges((self.lengths.cumsum(0) - self.lengths)[chosen], self.lengths[chosen])
        return ResidualTokens(self.lengths[chosen], self.residual[tokens], self.usual[tokens])

    def split(self, values: Tensor) -> list[Tensor]:
        """Return values of the tokens, `[tokens, ...]`, row by row."""
        return list(values.split(self.lengths.tolist()))


class DirectionScore(NamedTuple):
    """A score of the residual stream: `w [d_in]` and `b`."""

    direction: Tensor
    bias: float

    def of(self, tokens: ResidualTokens) -> Tensor:
        """Return the score of each token, `[tokens]` float32."""
        projected = tokens.residual @ self.direction + self.bias
        return in_steps(projected).clamp(LOWEST, HIGHEST) * tokens.usual

    def levels(self, norm: float) -> tuple[EncoderRows, list[float]]:
        """Return the levels as rows of an encoder, each of that norm, and the evidence of each."""
        above, below = round(HIGHEST / SCORE_STEP), round(-LOWEST / SCORE_STEP)
        signs = torch.tensor([1.0] * above + [-1.0] * below)
        edges = torch.tensor([*range(above), *range(below)]) + 0.5
        times = norm / float(self.direction.norm())
        rows = EncoderRows(
            signs[:, None] * self.direction * times, signs * self.bias * times, edges * SCORE_STEP * times
        )
        return rows, (signs * SCORE_STEP).tolist()


def fit_direction(topic: ResidualTokens, other: ResidualTokens) -> DirectionScore:
    """Fit a direction on rows of the topic and other rows."""
    usual = other.residual[other.usual]
    center, deviation = usual.mean(dim=0), usual.std(dim=0) + 1e-3
    windows = Windows.of(topic.lengths, other.lengths)
    means = windows.means(torch.cat([_standardized(part, center, deviation) for part in (topic, other)]))
    weights, bias = logistic(lambda w: means @ w, lambda g: g @ means, means.shape[1], windows, L2)
    direction = weights / deviation
    projected = usual @ direction
    scale = float(projected.std().clamp(min=1e-6))
    return DirectionScore(direction / scale, (bias - float(center @ direction)) / scale)


def _standardized(tokens: ResidualTokens, center: Tensor, deviation: Tensor) -> Tensor:
    """Return `[tokens, d_in]` in units of `deviation` and within `LIMIT`, 0 at outlying tokens."""
    return ((tokens.residual - center) / deviation).clamp(-LIMIT, LIMIT) * tokens.usual[:, None]
