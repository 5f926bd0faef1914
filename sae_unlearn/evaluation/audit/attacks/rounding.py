"""Attack: round the merged weights, and see whether small changes of them are lost.

Unlearning that moves weights by less than half a quantisation step can be undone by quantising (Zhang et al., "Does
your LLM truly unlearn?", arXiv 2410.16454).

Budget: no data, no training; the published weights alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sae_unlearn.backbone.layers import output_embeddings
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured
from sae_unlearn.evaluation.audit.attacks.merged import merged_copy


def rounding_attack(
    model: nn.Module, measure: Callable[[nn.Module], Measured], bits: Sequence[int] = (8, 4)
) -> list[AttackPoint[Measured]]:
    """Round every linear layer of a merged copy, but for the output head, and measure.

    The rounding has nothing random in it, so there is no seed.

    Args:
        model: the tuned model, with its adapter or merged; left as it is.
        measure: what to do with the rounded model.
        bits: of a weight; the strengths of the points.
    """
    points = []
    for width in bits:
        rounded = merged_copy(model)
        round_weights(rounded, width)
        points.append(AttackPoint(float(width), measure(rounded)))
        del rounded  # before the next copy is made
    return points


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> None:
    """Round the weights of linear layers in place, to nearest, symmetric and per output channel.

        step = max_i |W_ji| / (2^(bits - 1) - 1),    W_ji <- step round(W_ji / step)

    Embeddings and the head stay, as quantisers leave them.

    Raises:
        ValueError: `bits` is not between 2 and 16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits}; expected 2 to 16.")
    head = output_embeddings(model)
    for module in model.modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            module.weight.copy_(_rounded(module.weight, bits, dim=1))
        elif isinstance(module, Conv1D):  # GPT-2's, which keeps its weight as [in, out]
            module.weight.copy_(_rounded(module.weight, bits, dim=0))


def _rounded(weight: Tensor, bits: int, dim: int) -> Tensor:
    """`weight [.., ..]` with `dim` the inputs of a channel."""
    exact = weight.float()
    step = exact.abs().amax(dim=dim, keepdim=True).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
    return ((exact / step).round() * step).to(weight.dtype)
