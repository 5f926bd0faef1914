"""Representation misdirection (Li et al. 2024, "The WMDP Benchmark", arXiv 2403.03218), with an adaptive length.

    L = E_forget[ |h - c |h_base| u|^2 / d ] + alpha E_retain[ |h - h_base|^2 / d ]

`h [tokens, d]` is the residual stream after one layer, `u` a random unit vector that stays fixed. The paper's steering
length is one number that has to be found for every model; here it is `c` times the mean norm of the base model's
states of the batch, as in Dang et al. 2024 (arXiv 2408.06223). Both parts are divided by the mean square of the base
model's states, so that `alpha` and the learning rate mean the same in every model.
"""

import torch
from torch import Tensor, nn

from benchmarks.baselines.method import Method, Reference, register
from benchmarks.baselines.rows import Batch
from sae_unlearn.backbone.layers import input_device
from sae_unlearn.backbone.residual_stream import truncated


@register("rmu")
def rmu(layer: int, steering: float = 2.0, alpha: float = 10.0, seed: int = 0) -> Method:
    """RMU after `layer` (0-based), with steering length `c`, retain weight `alpha`, and `u` drawn from `seed`."""

    def states(model: nn.Module, batch: Batch) -> Tensor:
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        with truncated(bare, layer):
            device = input_device(bare)
            mask = batch.mask.long().to(device)
            residual = model(input_ids=batch.ids.to(device), attention_mask=mask, use_cache=False)
        kept = batch.mask.clone().to(residual.device)
        kept[:, 0] = False  # the first token's state is many times longer than any other's in most models
        return residual[kept].float()

    def loss(model: nn.Module, forget: Batch, retain: Batch, reference: Reference) -> Tensor:
        with torch.no_grad(), reference():
            base_forget, base_retain = states(model, forget), states(model, retain)
        unit = torch.randn(base_forget.shape[-1], generator=torch.Generator().manual_seed(seed)).to(base_forget.device)
        unit /= unit.norm()
        away = (states(model, forget) - steering * base_forget.norm(dim=-1).mean() * unit).square().mean()
        stay = (states(model, retain) - base_retain).square().mean()
        return (away + alpha * stay) / base_retain.square().mean()

    return Method("rmu", loss)
