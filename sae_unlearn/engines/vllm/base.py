"""Check that a model inside vLLM is the one that a guardrail was fitted on."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.identity import close_enough, embedding_samples
from sae_unlearn.checks import real


def difference(recorded: dict[str, Any], model: nn.Module, layers: nn.ModuleList, layer: int) -> str | None:
    """Return what tells a model from the one a fingerprint was taken of, None if nothing does.

    vLLM fuses matrices and keeps embedding and norms, so only these are compared: fine-tuning that leaves them alone is
    not seen. Biases are fused, too, so a recorded norm may be any of the layers' vectors.

    Args:
        recorded (dict): `base_model.fingerprint` of the guardrail's config.
        model (nn.Module): The model of a worker.
        layers (nn.ModuleList): Its decoder layers.
        layer (int): The guarded one; weights after it play no part.
    """
    embedding, rows = _embedding(model), recorded.get("rows")
    expected = recorded.get("embedding")
    if embedding is not None and isinstance(rows, int) and isinstance(expected, list) and rows <= len(embedding):
        found = embedding_samples(embedding, rows)
        different = [not close_enough(a, b) for a, b in zip(expected, found, strict=False)]
        if 20 * sum(different) > len(different):
            return f"{sum(different)} of {len(different)} sampled embedding weights differ"
    norms = recorded.get("norms")
    parameters = [parameter for each in layers[: layer + 1] for parameter in each.parameters()]
    vectors = [p for p in parameters if p.ndim == 1 and p.numel() and p.is_floating_point()]  # empty: packed elsewhere
    if not isinstance(norms, list) or not vectors:
        return None
    have = torch.stack([vector.detach().flatten()[0].float() for vector in vectors]).tolist()
    unknown = [a for a in norms if real(a) is None or not any(close_enough(a, b) for b in have)]
    if 20 * len(unknown) > len(norms):
        return f"{len(unknown)} of {len(norms)} sampled norms differ"
    return None


def _embedding(model: nn.Module) -> Tensor | None:
    """Return the input embedding, a part of it under tensor parallelism; None if it cannot be read."""
    for module in model.modules():
        if type(module).__name__.endswith("VocabParallelEmbedding"):
            weight = getattr(module, "weight", None)
            first = getattr(getattr(module, "shard_indices", None), "org_vocab_start_index", 0)
            if isinstance(weight, Tensor) and weight.numel() and weight.is_floating_point() and first == 0:
                return weight
    return None
