"""Negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868), with its retain term (NPO+RT).

    L = -(2 / beta) E_forget[ log sigmoid( -beta log( p(y | x) / p_base(y | x) ) ) ] - w E_retain[ log p(y | x) ]

As beta goes to 0 this is gradient ascent; beyond, an answer that has become unlikely pulls no more.
"""

import torch
from torch import Tensor, nn

from benchmarks.baselines.method import Method, Reference, register
from benchmarks.baselines.rows import Batch, cross_entropy, log_likelihood


@register("npo")
def npo(beta: float = 0.1, retain_weight: float = 1.0) -> Method:
    """NPO with inverse temperature `beta` and weight `w` of the retain rows."""

    def loss(model: nn.Module, forget: Batch, retain: Batch, reference: Reference) -> Tensor:
        with torch.no_grad(), reference():
            base = log_likelihood(model, forget)
        ratio = log_likelihood(model, forget) - base
        preference = -2 / beta * nn.functional.logsigmoid(-beta * ratio).mean()
        return preference + retain_weight * cross_entropy(model, retain)

    return Method("npo", loss)
