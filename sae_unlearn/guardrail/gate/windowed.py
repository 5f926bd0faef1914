"""The windowed statistic: a row's mean score, in units of its spread, and a cumulative sum.

Per content token `t` of a row the gate has a score `s_t`, of either sign (see `fit.gate_score`). With

    H_t = sum_{r<=t} s_r            N_t = number of tokens up to t            n_t = max(N_t, m)
    Y_t = H_t - d N_t               L_t = min_{r<=t} Y_r  (L_0 = 0)           P_t = max_{r<=t} (Y_r - L_r)

the statistic is the larger of two parts:

    z_t = (H_t - mu N_t) / sqrt(alpha n_t^2 + beta n_t)
    S_t = max(z_t, kappa P_t)

`z` is the mean over the row, less what other text has (`mu`), in units of how far the mean of `n` tokens of other text
strays: its variance is `A + B / n`, with a part `A` that differs between rows and does not average out, and
`alpha = A q_z^2`, `beta = B q_z^2` with `q_z` the quantile of `z` that is allowed to fire. It sees a topic that is
faint everywhere. `P` is Page's cumulative sum with drift `d`: it grows where the score stays above `d` and forgets what
came before, so text around a passage does not dilute it. It never falls. `kappa = 1 / q_c` puts it on the scale of `z`.

If the config names boundaries, the tokens that end a chat's messages or a text's paragraphs, `z_c` of each of them is a
candidate, too, from the sums of its own tokens alone:

    S_t = max(z_t, kappa P_t, lambda max_{c begun by t} z_c)

Each is one more chance of a false alarm. With `lambda = 1 / q_p` a text of many is allowed no more of them than a text
of one; see `fit.paragraphs`. `lambda` is 1 if the fit did not ask for paragraphs.

Scores are multiples of a quarter and `d` of a sixteenth, so the sums are exact in float32 up to a million tokens, and
`S` does not depend on how a row was cut into forward passes.

Source: Page 1954 for the cumulative sum.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class WindowedConstants(Protocol):
    """Protocol of the constants: `WindowedParameters`, or the `statistic_kwargs` of a config."""

    @property
    def other_mean(self) -> float: ...

    @property
    def row_variance(self) -> float: ...

    @property
    def token_variance(self) -> float: ...

    @property
    def drift(self) -> float: ...

    @property
    def sum_weight(self) -> float: ...

    @property
    def message_weight(self) -> float: ...

    @property
    def min_tokens(self) -> int: ...


class WindowedParameters(NamedTuple):
    """The constants of the windowed statistic.

    Attributes:
        other_mean (float): `mu`, the mean score of a token of other text.
        row_variance (float): `alpha >= 0`.
        token_variance (float): `beta > 0`.
        drift (float): `d`, a multiple of a sixteenth.
        sum_weight (float): `kappa > 0`.
        min_tokens (int, *optional*, defaults to 8): `m >= 1`.
        message_weight (float, *optional*, defaults to 1.0): `lambda > 0`, read if there are boundaries.
    """

    other_mean: float
    row_variance: float
    token_variance: float
    drift: float
    sum_weight: float
    min_tokens: int = 8
    message_weight: float = 1.0


class CountTerms(NamedTuple):
    """The terms of the statistic that depend on `N` alone, of the same shape as `N`.

    Attributes:
        mean: `mu N`.
        spread: `sqrt(alpha n^2 + beta n)`.
        drift: `d N`.
    """

    mean: Tensor
    spread: Tensor
    drift: Tensor

    @classmethod
    def of(cls, tokens: Tensor, parameters: WindowedConstants, by_count: Tensor | None = None) -> "CountTerms":
        """Return the terms for `N`, computed or from the table `by_count [longest + 1, 3]` of the same bits."""
        if by_count is not None:
            return cls(*by_count[tokens.long()].unbind(dim=-1))
        n = tokens.clamp(min=parameters.min_tokens)
        variance = (parameters.row_variance * n + parameters.token_variance) * n
        return cls(parameters.other_mean * tokens, variance.sqrt(), parameters.drift * tokens)


def windowed_value(
    hits: Tensor,
    tokens: Tensor,
    parameters: WindowedConstants,
    lowest: Tensor | None,
    peak: Tensor | None,
    by_count: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `S`, `L` and `P` along the tokens of one forward pass, each `[batch, seq]`.

    Args:
        hits, tokens (Tensor): `H` and `N`, `[batch, seq]` float32.
        lowest, peak (Tensor or None): `L` and `P` after the row's last earlier token, `[batch, 1]`; None at a row's
            beginning.
        by_count (Tensor, *optional*): The table of `CountTerms`.
    """
    terms = CountTerms.of(tokens, parameters, by_count)
    y = hits - terms.drift
    before = hits.new_zeros(hits.shape[0], 1) if lowest is None else lowest
    lowest = torch.minimum(y if y.shape[1] == 1 else y.cummin(dim=1).values, before)
    sums = y - lowest
    sums = sums if sums.shape[1] == 1 else sums.cummax(dim=1).values
    peak = sums if peak is None else torch.maximum(sums, peak)
    return torch.maximum((hits - terms.mean) / terms.spread, parameters.sum_weight * peak), lowest, peak


def mean_part(hits: Tensor, tokens: Tensor, parameters: WindowedConstants) -> Tensor:
    """Return `z`, of the same shape as `hits` and `tokens`."""
    terms = CountTerms.of(tokens, parameters)
    return (hits - terms.mean) / terms.spread


def message_part(hits: Tensor, tokens: Tensor, parameters: WindowedConstants) -> Tensor:
    """Return `lambda z` of the sums of a message or paragraph, of the same shape as `hits` and `tokens`."""
    share = mean_part(hits, tokens, parameters)
    return share if parameters.message_weight == 1 else parameters.message_weight * share
