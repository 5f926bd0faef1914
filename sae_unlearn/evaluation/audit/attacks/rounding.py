"""Attack: round the merged weights.

Unlearning that moves weights by less than half a quantization step can be undone by quantizing (Zhang et al., "Does
your LLM truly unlearn?", arXiv 2410.16454).

Budget: no data, no training; the published weights alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sae_unlearn.backbone.layers import output_embeddings
from sae_unlearn.checks import check_integer
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured
from sae_unlearn.evaluation.audit.attacks.merged import merged_copy


def rounding_attack(
    model: nn.Module, measure: Callable[[nn.Module], Measured], bits: Sequence[int] = (8, 4)
) -> list[AttackPoint[Measured]]:
    """Round every linear layer of a merged copy except the output head, and measure.

    Nothing in it is random.

    Args:
        model (nn.Module): The tuned model, with its adapter or merged. It is not changed.
        measure (callable): Measure of the rounded model.
        bits (sequence of int, *optional*, defaults to (8, 4)): Bits of a weight, the strengths of the points.
    """
    points = []
    for width in bits:
        rounded = merged_copy(model)
        round_weights(rounded, width)
        points.append(AttackPoint(float(width), measure(rounded)))
        del rounded  # frees memory for the next copy
    return points


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> None:
    """Round the weights of linear layers in place, to nearest, symmetric and per output channel.

        step = max_i |W_ji| / (2^(bits - 1) - 1),    W_ji <- step round(W_ji / step)

    Embeddings and the head are not rounded, as in common quantizers.

    Args:
        model (nn.Module): The model to round.
        bits (int): Bits of a weight, 2 to 16.

    Raises:
        UnlearnError: If `bits` is out of range.
    """
    check_integer("bits", bits, 2, 16)
    head = output_embeddings(model)
    for module in model.modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            module.weight.copy_(_rounded(module.weight, bits, dim=1))
        elif isinstance(module, Conv1D):  # GPT-2: the weight is [in, out]
            module.weight.copy_(_rounded(module.weight, bits, dim=0))


def _rounded(weight: Tensor, bits: int, dim: int) -> Tensor:
    """`weight [.., ..]` rounded, with `dim` the inputs of a channel."""
    exact = weight.float()
    step = exact.abs().amax(dim=dim, keepdim=True).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
    return ((exact / step).round() * step).to(weight.dtype)
