"""Attack: take the adapter off.

Trivial, and it always works: an adapter lies beside the weights, and whoever holds both has the base model. It is told
so that nobody takes a guardrail for a change of the weights. A LoRA that was merged, with the base model kept away,
cannot be taken off.

Budget: white box, one call, no data.
"""

from collections.abc import Callable

from torch import nn

from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured
from sae_unlearn.evaluation.base_model import without_adapters


def removal_attack(model: nn.Module, measure: Callable[[nn.Module], Measured]) -> list[AttackPoint[Measured]]:
    """Measure with all adapters out of force. There is nothing random in it, and nothing to control for.

    Args:
        measure: what to do with the model meanwhile.

    Raises:
        ValueError: there are no adapters to take off.
    """
    with without_adapters(model) as bare:
        return [AttackPoint(1.0, measure(bare))]
