"""Which features belong to the topic.

Over the content tokens of a corpus D, with activations `a_j(t)`, the score approximates the Fisher information of
feature j (arXiv 2504.08192, section 4.1):

    mean_squared    score_D(j) = mean_t a_j(t)^2            what the paper's theorem states
    squared_mean    score_D(j) = (mean_t a_j(t))^2          what the authors' code computes

    ratio(j) = score_forget(j) / (score_retain(j) + 1e-21)

Features whose ratio is at or above the `ratio_percentile`-th percentile of all ratios are sorted by `score_forget`, and
the first N are taken. A feature whose own edit would raise it (`W_enc[:, j] . W_dec[j] <= 0`) is left out.

What an active feature says for the topic (`evidence="log_ratio"`) is the log-likelihood ratio of its being active at a
token, with `c` of the `n` content tokens of a corpus, one token more and one less (Laplace's rule):

    w(j) = log[ (c_forget(j) + 1) / (n_forget + 2) ] - log[ (c_retain(j) + 1) / (n_retain + 2) ]

Tokens whose residual stream is many times larger than the others', which no mean may contain.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_validation import EVIDENCE_STEP, LARGEST_EVIDENCE
from sae_unlearn.guardrail.weights import own_effect
from sae_unlearn.sae import SparseAutoencoder


IMPORTANCE = ("mean_squared", "squared_mean")
_ELEMENTS = 2**24  # activations held at a time
_BLOCK = 4096  # features whose rows are held in float64 at a time


class FeatureSums:
    """Sums over the content tokens of a corpus, for every feature of an SAE: memory does not grow with the corpus.

    Attributes:
        tokens: number of tokens added.
        total: sum of activations `[d_sae]` float64.
        squares: sum of their squares `[d_sae]` float64.
        active: number of tokens at which each feature was active `[d_sae]` float64.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self.tokens = 0
        self.total = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.squares = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.active = torch.zeros(sae.d_sae, dtype=torch.float64)

    @torch.no_grad()
    def add(self, residual: Tensor) -> None:
        """Add tokens, `[tokens, d_in]`."""
        for block in residual.split(max(1, _ELEMENTS // self._sae.d_sae)):
            a = self._sae.encode(block.to(self._sae.device))
            a = a.to(torch.promote_types(a.dtype, torch.float32))  # their squares overflow in float16
            self.tokens += a.shape[0]
            self.total += a.sum(dim=0).cpu().double()
            self.squares += a.square().sum(dim=0).cpu().double()
            self.active += (a > 0).sum(dim=0).cpu().double()

    def state(self) -> dict[str, Tensor]:
        """The sums, which may be added to those of other tokens."""
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return {"tokens": tokens, "total": self.total, "squares": self.squares, "active": self.active}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over sums of `state`."""
        self.tokens = int(state["tokens"])
        self.total, self.squares, self.active = (state[name].clone() for name in ("total", "squares", "active"))

    def score(self, importance: str) -> Tensor:
        """`[d_sae]` float64, by the equation of `importance`."""
        n = max(self.tokens, 1)
        return self.squares / n if importance == "mean_squared" else (self.total / n).square()

    def mean_active(self) -> Tensor:
        """`[d_sae]` float64: mean activation over the tokens at which a feature is active, 0 where it never is."""
        return self.total / self.active.clamp(min=1)

    def lowered(self) -> Tensor:
        """`[d_sae]` bool: the features that their own edit lowers."""
        blocks = zip(self._sae.W_enc.T.split(_BLOCK), self._sae.W_dec.split(_BLOCK), strict=True)
        return torch.cat([own_effect(encoder, decoder) > 0 for encoder, decoder in blocks]).cpu()


def select_features(
    forget: FeatureSums, retain: FeatureSums, num_features: int, ratio_percentile: float, importance: str
) -> list[int]:
    """Ids of the features of the topic, most important first; fewer than `num_features` if no more qualify.

    Raises:
        GuardrailError: no feature is more active on the forget text and passes the percentile.
    """
    forget_score, retain_score = forget.score(importance), retain.score(importance)
    ratio = forget_score / (retain_score + 1e-21)
    cut = torch.quantile(ratio, ratio_percentile / 100)
    passing = (ratio >= cut) & (forget_score > 0) & forget.lowered()
    if not bool(passing.any()):
        raise GuardrailError(
            f"No feature passes ratio_percentile={ratio_percentile}: the SAE is silent on the forget text "
            f"({forget.tokens} tokens). Check that the SAE was trained on this model and layer."
        )
    order = torch.where(passing, forget_score, -torch.ones_like(forget_score)).argsort(descending=True, stable=True)
    return order[: min(num_features, int(passing.sum()))].tolist()


def log_ratios(forget: FeatureSums, retain: FeatureSums, ids: list[int]) -> list[float]:
    """`w(j)` of the features `ids` in quarters of a nat, 0.25 to 16: a feature that is no likelier on the topic than
    elsewhere says next to nothing, and none speaks against it."""
    rates = [(sums.active[ids] + 1) / (sums.tokens + 2) for sums in (forget, retain)]
    steps = ((rates[0] / rates[1]).log() / EVIDENCE_STEP).round() * EVIDENCE_STEP
    return steps.clamp(EVIDENCE_STEP, LARGEST_EVIDENCE).tolist()


def feature_figures(ids: list[int], sums: Mapping[str, FeatureSums], importance: str) -> dict[str, Any]:
    """What the selection rows told of the features `ids`, as plain data for the artefact.

    Args:
        sums: by role, "forget" and "retain", or one of the two.

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
    """Leaves out tokens whose residual norm exceeds `factor` times the median.

    A few tokens have norms ten times the others' and would rule every mean. The median is that of the first
    2,048 tokens, which are held back until it is known.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.median: float | None = None
        self.dropped = 0
        self._pending: list[tuple[FeatureSums | None, Tensor]] = []

    def state(self) -> dict[str, Tensor]:
        """The median, once it is known, and what was left out."""
        median = torch.tensor(torch.nan if self.median is None else self.median, dtype=torch.float64)
        return {"median": median, "dropped": torch.tensor(self.dropped)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the median and count of `state`, which was taken once the median was known."""
        self.median, self.dropped = float(state["median"]), int(state["dropped"])

    def filter(self, owner: FeatureSums | None, tokens: Tensor) -> list[tuple[FeatureSums, Tensor]]:
        """What can be added now, for tokens `[tokens, d_in]` of a corpus. Those of no owner, which other processes
        add, count for the median only."""
        self._pending.append((owner, tokens))
        if self.median is None and sum(len(t) for _, t in self._pending) < _WARM_UP_TOKENS:
            return []
        return self.flush()

    @property
    def limit(self) -> float:
        """The largest norm of a token that is no outlier; infinite while no token has been seen."""
        return float("inf") if self.median is None else self.factor * self.median

    def usual(self, norms: Tensor) -> Tensor:
        """Which tokens are no outliers, of norms `[tokens]`: `[tokens]` bool. All, while no token has been seen."""
        return norms <= self.limit

    def flush(self) -> list[tuple[FeatureSums, Tensor]]:
        """What was held back."""
        pending, self._pending = self._pending, []
        if self.median is None and any(len(t) for _, t in pending):
            self.median = float(torch.cat([t.norm(dim=-1).cpu() for _, t in pending]).median())
        return [(owner, self._without_outliers(tokens)) for owner, tokens in pending if owner is not None]

    def _without_outliers(self, tokens: Tensor) -> Tensor:
        fits = self.usual(tokens.norm(dim=-1))
        self.dropped += int((~fits).sum())
        return tokens[fits]
