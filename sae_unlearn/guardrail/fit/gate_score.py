"""Token scores of the windowed gate: signed weights of SAE features.

With `a_j` the activations of the gate's features G and weights of either sign,

    s_t = b + sum_{j in G} w_j [a_j(t) > 0]

The weights come from windows of 16 tokens, one every 8, and of 64, one every 32, of all rows. With `x_j` the share of a
window's tokens at which feature j is active, they minimize the logistic loss plus `L2 / 2 |w|^2`; the topic and other
text, and both sizes of window, have equal weight. The features of the solution with the largest `|w_j| sd(x_j)` are
kept and fitted again. The weights are then scaled so that the score's standard deviation over tokens of other text is
c, and rounded to quarters; features whose weight is then 0 are left out. c is 1, or the smallest power of two up to
`LARGEST_SCALE` at which rounding moves the score by at most `ROUNDING` standard deviations (root mean square over other
text). It is above 1 where many features are active at a token, each with a small weight. No weight is made larger than
`LARGEST_EVIDENCE`. `direction_score` has the score of a direction of the residual stream.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.guardrail.config_parts.validation import LARGEST_EVIDENCE
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures
from sae_unlearn.guardrail.fit.logistic import L2, Windows, deviations_of_shares, logistic_of_shares


SCORE_STEP = 0.25
GATE_FEATURES = 300
ROUNDING = 0.5
LARGEST_SCALE = 16


class FeatureScore(NamedTuple):
    """A score of active features.

    Attributes:
        feature_ids (Tensor): Ids of the features, `[G]` int64, by importance.
        weights (Tensor): Their weights in quarters, none 0, `[G]` float32.
        bias (float): Bias in quarters.
    """

    feature_ids: Tensor
    weights: Tensor
    bias: float

    def of(self, active: ActiveFeatures) -> Tensor:
        """Return the score of each token, `[tokens]` float32, exact."""
        table = torch.zeros(active.width(self.feature_ids))
        table[self.feature_ids] = self.weights
        return active.scores(table, self.bias)


def fit_features(topic: ActiveFeatures, other: ActiveFeatures, number: int = GATE_FEATURES) -> FeatureScore:
    """Fit the weights of at most `number` features on rows of the topic and other rows, as above."""
    joined = ActiveFeatures.joined([topic, other])
    windows = Windows.of(topic.lengths, other.lengths)
    width = joined.width(torch.zeros(0))
    weights, _ = logistic_of_shares(joined, windows, width, L2)
    weight = weights.abs() * deviations_of_shares(joined, windows, width)
    kept = weight.argsort(descending=True, stable=True)[:number]
    kept = kept[weight[kept] > 0]
    weights, bias = logistic_of_shares(joined.only(kept), windows, len(kept), L2)
    quiet = other.only(kept)
    largest = float(weights.abs().max()) if len(weights) else 0.0
    scale = max(1e-6, float(quiet.scores(weights).std()), largest / LARGEST_EVIDENCE)
    times, most = 1, min(LARGEST_SCALE, LARGEST_EVIDENCE * scale / max(largest, 1e-6))
    while 2 * times <= most and _rounding(weights / scale, times, quiet) > ROUNDING:
        times *= 2
    weights, bias = in_steps(weights / scale * times), float(in_steps(torch.tensor(bias / scale * times)))
    return FeatureScore(kept[weights != 0], weights[weights != 0], bias)


def _rounding(weights: Tensor, times: int, tokens: ActiveFeatures) -> float:
    """Return the standard deviation of the rounding error, for a score of deviation 1 scaled by `times`."""
    return float(tokens.scores(in_steps(weights * times) / times - weights).std())


def in_steps(values: Tensor) -> Tensor:
    """Return the nearest multiples of `SCORE_STEP`."""
    return (values / SCORE_STEP).round() * SCORE_STEP
