"""Have the targets been crushed into one point?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_unlearn.checks import check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.stats import percentile_interval, times_drawn


ALARM = 0.5
"""Targets that vary less than half as much as unknown entities do have collapsed."""

_DRAWS_AT_ONCE = 50  # [50, templates, d_sae] float64 are held


@dataclass(frozen=True)
class CollapseRatio:
    """How much targets vary, compared with unknown entities; 1 is the goal.

    Attributes:
        mean: mean over dimensions of var(targets) / var(unknowns).
        pooled: total variance of the targets over that of the unknowns, which dimensions that hardly vary in the
            unknowns cannot inflate.
        dimensions: how many dimensions were compared; where the unknowns do not vary at all there is no ratio.
    """

    mean: Estimate
    pooled: Estimate
    dimensions: int

    @property
    def alarm(self) -> bool:
        """Whether either ratio is below 0.5."""
        return min(self.mean.value, self.pooled.value) < ALARM


def collapse_ratio(targets: Tensor, unknown: Tensor, draws: int = 1000, seed: int = 0) -> CollapseRatio:
    """Return the variance over entities of targets against unknown ones, averaged over templates, with intervals.

    What a template adds to all entities is not spread. The trainer's `variance_ratio` divides by the spread of all
    unknown references, and has no interval.

        mean_j  mean_t var_i(targets[i, t, j]) / mean_t var_i(unknown[i, t, j])

    The intervals are bootstraps over the entities of both sides; a resampled variance is too small by (n - 1)/n, which
    is put right.

    Args:
        targets, unknown: `[entities, templates, d]`: latent codes (pre-activations) in the tuned model, at least two
            entities each, as many templates and dimensions in both.

    Raises:
        UnlearnError: fewer than two entities on a side, shapes that do not fit, or unknowns that do not vary at all.
    """
    check_is(targets, Tensor, "targets")
    check_is(unknown, Tensor, "unknown")
    if len(targets) < 2 or len(unknown) < 2 or targets.shape[1:] != unknown.shape[1:]:
        raise UnlearnError(
            f"targets={list(targets.shape)}, unknown={list(unknown.shape)}: expected [entities, templates, d] with "
            "at least two entities and the same templates and dimensions."
        )
    targets, unknown = targets.double(), unknown.double()
    varies = _variance(unknown) > 0
    if not bool(varies.any()):
        raise UnlearnError("unknown: expected states that vary, got equal ones. Pass pre-activations, not activations.")
    targets, unknown = targets[..., varies], unknown[..., varies]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        number = min(_DRAWS_AT_ONCE, draws - start)
        a, b = _redrawn_variances(targets, number, generator), _redrawn_variances(unknown, number, generator)
        kept = (b > 0).double()
        mean = (a / b.clamp(min=torch.finfo(b.dtype).tiny) * kept).sum(dim=1) / kept.sum(dim=1)
        found.append(torch.stack([mean, a.sum(dim=1) / b.sum(dim=1)], dim=1))
    a, b = _variance(targets), _variance(unknown)
    values = [(a / b).mean(), a.sum() / b.sum()]
    by_mean, pooled = (
        Estimate(float(value), *percentile_interval(drawn), len(targets))
        for value, drawn in zip(values, torch.cat(found).unbind(dim=1), strict=True)
    )
    return CollapseRatio(by_mean, pooled, int(varies.sum()))


def _variance(codes: Tensor) -> Tensor:
    """`[entities, templates, d]` -> `[d]`: variance over entities, mean over templates."""
    return codes.var(dim=0).mean(dim=0)


def _redrawn_variances(codes: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """`[draws, d]`: `_variance` of as many entities drawn with replacement, by how often each was drawn:

    var* = (sum_i w_i x_i^2 - (sum_i w_i x_i)^2) (n / (n - 1))^2,    w_i = times drawn / n
    """
    n, templates, d = codes.shape
    weights = times_drawn(n, draws, generator) / n
    rows = (codes - codes.mean(dim=0)).flatten(1)  # centred, or the difference of squares would lose its digits
    spread = weights @ rows.square() - (weights @ rows).square()
    return spread.clamp(min=0).unflatten(1, (templates, d)).mean(dim=1) * (n / (n - 1)) ** 2
