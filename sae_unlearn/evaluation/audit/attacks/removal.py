"""Attack: remove the adapter.

This always works: an adapter is stored next to the weights, and anyone with both has the base model. The audit lists it
because a guardrail is not a change of the weights. A merged LoRA whose base model is private cannot be removed.

Budget: white box, one call, no data.
"""

from collections.abc import Callable

from torch import nn

from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured
from sae_unlearn.evaluation.base_model import without_adapters


def removal_attack(model: nn.Module, measure: Callable[[nn.Module], Measured]) -> list[AttackPoint[Measured]]:
    """Measure with all adapters disabled. Nothing in it is random, and it needs no control.

    Args:
        model (nn.Module): The tuned model.
        measure (callable): Measure of the model without its adapters.

    Raises:
        UnlearnError: If the model has no active adapters.
    """
    with without_adapters(model) as bare:
        return [AttackPoint(1.0, measure(bare))]
