"""Selection of the topic's features, their evidence, and the filter of outlying tokens.

Over the content tokens of a corpus D, with activations `a_j(t)`, the score approximates the Fisher information of
feature j (arXiv 2504.08192, section 4.1):

    mean_squared    score_D(j) = mean_t a_j(t)^2            by the paper's theorem
    squared_mean    score_D(j) = (mean_t a_j(t))^2          by the authors' code

    ratio(j) = score_forget(j) / (score_retain(j) + 1e-21)

Features whose ratio is at or above the `ratio_percentile`-th percentile of all ratios are sorted by `score_forget`, and
the first N are selected. A feature whose own edit would raise it (`W_enc[:, j] . W_dec[j] <= 0`) is left out.

The evidence of an active feature (`evidence="log_ratio"`) is the log-likelihood ratio of its activity at a token. It is
active at `c` of the `n` content tokens of a corpus; Laplace's rule adds one active and one inactive token:

    w(j) = log[ (c_forget(j) + 1) / (n_forget + 2) ] - log[ (c_retain(j) + 1) / (n_retain + 2) ]

Tokens whose residual stream is many times larger than others' are left out: they would dominate every mean.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.validation import EVIDENCE_STEP, LARGEST_EVIDENCE
from sae_unlearn.guardrail.fit.reconstruction import SAMPLE
from sae_unlearn.guardrail.weights import own_effect
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.explained import ExplainedVariance


_ELEMENTS = 2**24  # activations in memory at a time
_BLOCK = 4096  # features whose rows are in float64 at a time


class FeatureSums:
    """Sums over the content tokens of a corpus for every feature of an SAE, in constant memory.

    Attributes:
        tokens (int): Number of tokens added.
        total (Tensor): Sum of activations `[d_sae]` float64.
        squares (Tensor): Sum of their squares `[d_sae]` float64.
        active (Tensor): Number of tokens at which each feature was active `[d_sae]` float64.
        reconstruction (ExplainedVariance): Of a sample of the tokens; not part of `state`. It has no tokens if the
            SAE normalizes its inputs, since its decoder then gives a normalized residual.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self.tokens = 0
        self.total = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.squares = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.active = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.reconstruction = ExplainedVariance(sae.d_in)

    @torch.no_grad()
    def add(self, residual: Tensor) -> None:
        """Add tokens of one batch, `[tokens, d_in]`."""
        for number, block in enumerate(residual.split(max(1, _ELEMENTS // self._sae.d_sae))):
            a = self._sae.encode(block.to(self._sae.device))
            if number == 0 and self._sae.input_norm is None:
                self.reconstruction.add(block[:SAMPLE].to(a.device), self._sae.decode(a[:SAMPLE]))
            a = a.to(torch.promote_types(a.dtype, torch.float32))  # their squares overflow in float16
            self.tokens += a.shape[0]
            self.total += a.sum(dim=0).cpu().double()
            self.squares += a.square().sum(dim=0).cpu().double()
            self.active += (a > 0).sum(dim=0).cpu().double()

    def state(self) -> dict[str, Tensor]:
        """Return the sums, which can be added to those of other tokens."""
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return {"tokens": tokens, "total": self.total, "squares": self.squares, "active": self.active}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums of `state`."""
        self.tokens = int(state["tokens"])
        self.total, self.squares, self.active = (state[name].clone() for name in ("total", "squares", "active"))

    def score(self, importance: str) -> Tensor:
        """Return the score `[d_sae]` float64, by the equation of `importance`."""
        n = max(self.tokens, 1)
        return self.squares / n if importance == "mean_squared" else (self.total / n).square()

    def mean_active(self) -> Tensor:
        """Return `[d_sae]` float64: mean activation over a feature's active tokens, 0 without any."""
        return self.total / self.active.clamp(min=1)

    def lowered(self) -> Tensor:
        """Return `[d_sae]` bool: the features that their own edit lowers."""
        blocks = zip(self._sae.W_enc.T.split(_BLOCK), self._sae.W_dec.split(_BLOCK), strict=True)
        return torch.cat([own_effect(encoder, decoder) > 0 for encoder, decoder in blocks]).cpu()


def select_features(
    forget: FeatureSums, retain: FeatureSums, num_features: int, ratio_percentile: float, importance: str
) -> list[int]:
    """Return ids of the topic's features, most important first; at most `num_features`.

    Raises:
        GuardrailError: If no feature is active on the forget text and passes the percentile.
    """
    forget_score, retain_score = forget.score(importance), retain.score(importance)
    ratio = forget_score / (retain_score + 1e-21)
    cut = torch.quantile(ratio, ratio_percentile / 100)
    passing = (ratio >= cut) & (forget_score > 0) & forget.lowered()
    if not bool(passing.any()):
        raise GuardrailError(
            f"ratio_percentile={ratio_percentile}: no feature passes, the SAE is silent on {forget.tokens} tokens of "
            "forget text. Pass an SAE trained on this model and layer."
        )
    order = torch.where(passing, forget_score, -torch.ones_like(forget_score)).argsort(descending=True, stable=True)
    return order[: min(num_features, int(passing.sum()))].tolist()


def log_ratios(forget: FeatureSums, retain: FeatureSums, ids: list[int]) -> list[float]:
    """Return `w(j)` of the features `ids` in quarters of a nat, from 0.25 to 16.

    A feature that is not likelier on the topic than elsewhere counts the least, and none counts against the topic.
    """
    rates = [(sums.active[ids] + 1) / (sums.tokens + 2) for sums in (forget, retain)]
    steps = ((rates[0] / rates[1]).log() / EVIDENCE_STEP).round() * EVIDENCE_STEP
    return steps.clamp(EVIDENCE_STEP, LARGEST_EVIDENCE).tolist()


def feature_figures(ids: list[int], sums: Mapping[str, FeatureSums], importance: str) -> dict[str, Any]:
    """Return measurements of the features `ids` on the selection rows, as plain data for the config.

    Args:
        ids (list[int]): Ids of the features.
        sums (Mapping[str, FeatureSums]): Sums by role, "forget" and "retain", or one of the two.
        importance (str): "mean_squared" or "squared_mean".

    Returns:
        For each role lists in the order of `ids`: `score_<role>` by the equation of `importance`, `density_<role>` (the
        share of content tokens at which the feature is active) and `mean_active_<role>`.
    """
    found: dict[str, Any] = {}
    for role, one in sums.items():
        found[f"score_{role}"] = _significant(one.score(importance)[ids])
        found[f"density_{role}"] = _significant(one.active[ids] / max(one.tokens, 1))
        found[f"mean_active_{role}"] = _significant(one.mean_active()[ids])
    return found


def _significant(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


OUTLIER_FACTOR = 2.0
_WARM_UP_TOKENS = 2048


class OutlierFilter:
    """Filter that leaves out tokens whose residual norm exceeds `factor` times the median.

    A few tokens have norms ten times the others' and would dominate every mean. The median is that of the first 2,048
    tokens, which are kept until it is known.

    Args:
        factor (float): Largest norm of a usual token, in medians.

    Attributes:
        median (float, *optional*): The median; None until it is known.
        dropped (int): Number of tokens left out.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.median: float | None = None
        self.dropped = 0
        self._pending: list[tuple[FeatureSums | None, Tensor]] = []

    def state(self) -> dict[str, Tensor]:
        """Return the median, NaN until it is known, and the number of tokens left out."""
        median = torch.tensor(torch.nan if self.median is None else self.median, dtype=torch.float64)
        return {"median": median, "dropped": torch.tensor(self.dropped)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the median and count of `state`, which was saved once the median was known."""
        self.median, self.dropped = float(state["median"]), int(state["dropped"])

    def filter(self, owner: FeatureSums | None, tokens: Tensor) -> list[tuple[FeatureSums, Tensor]]:
        """Return the tokens that can be added now, for new tokens `[tokens, d_in]` of a corpus.

        Tokens without an owner, which other processes add, count only for the median.
        """
        self._pending.append((owner, tokens))
        if self.median is None and sum(len(t) for _, t in self._pending) < _WARM_UP_TOKENS:
            return []
        return self.flush()

    @property
    def limit(self) -> float:
        """Largest norm of a token that is not an outlier; infinite before the first token."""
        return float("inf") if self.median is None else self.factor * self.median

    def usual(self, norms: Tensor) -> Tensor:
        """Return `[tokens]` bool from norms `[tokens]`: the tokens that are not outliers."""
        return norms <= self.limit

    def flush(self) -> list[tuple[FeatureSums, Tensor]]:
        """Return the tokens that were kept until the median is known."""
        pending, self._pending = self._pending, []
        if self.median is None and any(len(t) for _, t in pending):
            self.median = float(torch.cat([t.norm(dim=-1).cpu() for _, t in pending]).median())
        return [(owner, self._without_outliers(tokens)) for owner, tokens in pending if owner is not None]

    def _without_outliers(self, tokens: Tensor) -> Tensor:
        fits = self.usual(tokens.norm(dim=-1))
        self.dropped += int((~fits).sum())
        return tokens[fits]
