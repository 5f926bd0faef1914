"""Gradient difference (Liu, Liu and Stone 2022, "Continual Learning and Private Unlearning", arXiv 2203.12817).

L = E_forget[ log p(y | x) ] - w E_retain[ log p(y | x) ]
"""

from torch import Tensor, nn

from benchmarks.baselines.method import Method, Reference, register
from benchmarks.baselines.rows import Batch, cross_entropy


@register("grad_diff")
def grad_diff(retain_weight: float = 1.0) -> Method:
    """Ascent on the forget rows, descent on the retain rows with weight `w`."""

    def loss(model: nn.Module, forget: Batch, retain: Batch, reference: Reference) -> Tensor:
        return -cross_entropy(model, forget) + retain_weight * cross_entropy(model, retain)

    return Method("grad_diff", loss)
