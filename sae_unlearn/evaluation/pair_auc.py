"""AUC as the share of pairs in the right order, with an interval over the things that are paired."""

import torch
from torch import Tensor

from sae_unlearn.evaluation.intervals import percentile_interval, times_drawn
from sae_unlearn.evaluation.report.estimate import Estimate


def pair_auc(
    wins: Tensor, counts: Tensor | None = None, same: bool = False, draws: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of pairs that were compared, with a bootstrap over the things on both sides.

    In each bootstrap draw the things are drawn with replacement, u_i and v_j being how often each came:

        AUC* = sum_ij u_i v_j wins_ij / sum_ij u_i v_j counts_ij      (u = v where both sides are the same things)

    Args:
        wins: `[n, m]`, the sum of the outcomes (0 to 1) of each pair's comparisons.
        counts: `[n, m]`, how often each pair was compared; None for once each.
        same: the two sides are the same things, compared with each other.

    Returns:
        The AUC; its `n` counts the things of the first side that were compared.

    Raises:
        ValueError: no pair was compared.
    """
    wins = wins.double()
    counts = torch.ones_like(wins) if counts is None else counts.double()
    if not bool((counts > 0).any()):
        raise ValueError("No pair was compared; pass at least one thing on each side.")
    generator = torch.Generator().manual_seed(seed)
    u = times_drawn(len(wins), draws, generator)
    v = u if same else times_drawn(wins.shape[1], draws, generator)
    compared = ((u @ counts) * v).sum(dim=1)
    found = ((u @ wins) * v).sum(dim=1)[compared > 0] / compared[compared > 0]
    return Estimate(float(wins.sum() / counts.sum()), *percentile_interval(found), int((counts.sum(dim=1) > 0).sum()))
