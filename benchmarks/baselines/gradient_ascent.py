"""Gradient ascent (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks in LMs", arXiv 2210.01504).

    L = E_forget[ log p(y | x) ]

No bound and nothing that holds the rest: how long it is run is all there is to choose.
"""

from torch import Tensor, nn

from benchmarks.baselines.method import Method, Reference, register
from benchmarks.baselines.rows import Batch, cross_entropy


@register("ga")
def gradient_ascent() -> Method:
    """Gradient ascent on the forget rows."""

    def loss(model: nn.Module, forget: Batch, retain: Batch, reference: Reference) -> Tensor:
        return -cross_entropy(model, forget)

    return Method("ga", loss)
