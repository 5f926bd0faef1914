"""Measures of an SAE on held-out text: explained variance, L0, silent features, loss recovered.

    explained_variance = that of `sae.explained`, over tokens that are not outliers
    standardized       = the same with every dimension divided by its standard deviation
    loss_recovered     = (loss_mean - loss_spliced) / (loss_mean - loss)

where `loss_spliced` is the model's cross-entropy with the layer's output replaced by the reconstruction, and
`loss_mean` with its mean in that place, both on all tokens but each row's first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from sae_unlearn.backbone.layers import find_decoder_layers, input_device, residual_of
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.sae.autoencoder import SparseAutoencoder
from sae_unlearn.sae.explained import ExplainedVariance
from sae_unlearn.sae.training.harvest import OUTLIER_FACTOR, layer_outputs


LOSS_ROWS = 64  # rows at most for the losses, which need the whole model
_PART = 4096  # tokens encoded at a time


@torch.no_grad()
def measure_sae(
    model: nn.Module, sae: SparseAutoencoder, layer: int, rows: Tensor, rows_per_pass: int = 8, progress: bool = True
) -> dict[str, Any]:
    """Measure an SAE on rows that it was not trained on; the equations are above.

    Args:
        model (Module): The bare transformers model.
        sae (SparseAutoencoder): On the CPU.
        layer (int): 0-based decoder layer whose output it reads.
        rows (Tensor): Token ids `[n, context]`.
        rows_per_pass (int, *optional*, defaults to 8): Rows of a forward pass.
        progress (bool, *optional*, defaults to True): Show a bar.

    Returns:
        `dict`: `tokens`, `explained_variance`, `explained_variance_standardized`, `l0`, `silent_features` (active on
        none of the tokens), `loss`, `loss_spliced`, `loss_mean_ablated`, `loss_recovered`, `loss_positions`.
    """
    outputs = torch.cat([residual for _, residual in layer_outputs(model, layer, rows, rows_per_pass)]).flatten(0, 1)
    norms = outputs.norm(dim=-1)
    x = outputs[norms <= OUTLIER_FACTOR * norms.median()]
    found = reconstruction(sae, x)
    mean = x.mean(dim=0)
    replacements: dict[str, Callable[[Tensor], Tensor] | None] = {
        "loss": None,
        "loss_spliced": lambda h: sae(h.float()).to(h.dtype),
        "loss_mean_ablated": lambda h: mean.to(h).expand_as(h),
    }
    part = rows[:LOSS_ROWS]
    for name, replace in tqdm(replacements.items(), desc="held-out losses", disable=not progress):
        found[name] = _loss(model, layer, part, rows_per_pass, replace)
    gap = found["loss_mean_ablated"] - found["loss"]
    found["loss_recovered"] = (found["loss_mean_ablated"] - found["loss_spliced"]) / gap if gap else None
    found["loss_positions"] = part[:, 2:].numel()
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def reconstruction(sae: SparseAutoencoder, x: Tensor) -> dict[str, Any]:
    """The figures that need activations only, `x [tokens, d_in]`."""
    deviation = x.std(dim=0).clamp(min=1e-6)
    plain, standardized = ExplainedVariance(x.shape[1]), ExplainedVariance(x.shape[1])
    active, fired = 0.0, torch.zeros(sae.d_sae, dtype=torch.bool)
    for part in x.split(_PART):
        features = sae.encode(part)
        decoded = sae.decode(features)
        plain.add(part, decoded)
        standardized.add(part / deviation, decoded / deviation)
        active += float((features > 0).sum())
        fired |= (features > 0).any(dim=0)
    explained = [math.nan if value is None else value for value in (plain.explained(), standardized.explained())]
    return {
        "tokens": len(x),
        "explained_variance": explained[0],
        "explained_variance_standardized": explained[1],
        "l0": active / max(1, len(x)),
        "silent_features": int((~fired).sum()),
    }


def _loss(
    model: Any, layer: int, rows: Tensor, rows_per_pass: int, replace: Callable[[Tensor], Tensor] | None
) -> float:
    """Mean cross-entropy in nats of all tokens but the first two of each row."""
    total, device = 0.0, input_device(model)
    with evaluation_mode(model), _spliced(model, layer, replace):
        for part in rows.split(rows_per_pass):
            logits = model(input_ids=part.to(device), use_cache=False).logits[:, 1:-1].float()
            wanted = part[:, 2:].to(logits.device)
            total += float(F.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum"))
    return total / rows[:, 2:].numel()


@contextmanager
def _spliced(model: nn.Module, layer: int, replace: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    def splice(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = residual_of(module, output)
        if replace is None:
            return output
        new = torch.cat([hidden[:, :1], replace(hidden[:, 1:])], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = find_decoder_layers(model).layers[layer].register_forward_hook(splice)
    try:
        yield
    finally:
        handle.remove()
