"""To know a model again, with the adapters that are in force.

A few numbers by which a base model is known again, whatever dtype or quantisation it is loaded in.

Taken from the input embedding and from the one-dimensional weights (norms and biases) up to the guarded layer, which
the usual schemes do not quantise, and from the matrices of those layers, which fine-tuning changes. A LoRA or a
guardrail beside them does not change them; a merged one does.
"""

import hashlib
import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sae_unlearn.backbone.adapters_off import base_parameters
from sae_unlearn.backbone.fingerprint_matrices import Comparison, compare_matrices, matrix_samples
from sae_unlearn.backbone.layers import find_decoder_layers, input_embeddings, text_config
from sae_unlearn.checks import real


def model_key(model: nn.Module) -> str:
    """A short hash of a model's weights and of which adapters are in force, to know it again by.

    Of every parameter the name, shape, dtype and up to 16 values spread over it count: enough to tell a tuned or
    otherwise quantised model from the base. Parameters that are not in memory (`meta`) give their names only.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.is_meta or parameter.numel() == 0:
            continue
        flat = parameter.detach().flatten()
        where = torch.linspace(0, flat.numel() - 1, min(16, flat.numel()), dtype=torch.float64).long()
        digest.update(flat[where.to(flat.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            # a guarded layer says itself what is in force: PEFT's switch may have been meant for another adapter
            in_force = getattr(module, "in_force", module.active_adapters)
            digest.update(f"{name} {sorted(in_force)} {module.disable_adapters}".encode())
    return digest.hexdigest()[:16]


_SAMPLES = 32
_TOLERANCE = 2.0**-7  # one step of bfloat16
_MATCHING = 0.95


def fingerprint(model: nn.Module, layer: int, rows: int | None = None) -> dict[str, Any] | None:
    """`{"model_type": str, "rows": int, "embedding": [float], "norms": [float], "matrices": {name: [float]}}`; None
    where the embedding or a norm is not in memory (`meta`). Matrices that cannot be read are left out.

    Args:
        model: the bare transformers model.
        layer: the guarded layer; weights after it play no part.
        rows: how many rows of the embedding, from the first on, are sampled. Default the first quarter: vocabularies
            are padded and extended at their end.
    """
    embedding = input_embeddings(model).weight
    rows = max(embedding.shape[0] // 4, 1) if rows is None else rows
    place = find_decoder_layers(model)
    vectors = [
        (name, parameter)
        for depth, decoder_layer in enumerate(place.layers[: layer + 1])
        for name, parameter in base_parameters(decoder_layer, f"{depth}.")
        if parameter.ndim == 1 and parameter.is_floating_point()
    ]
    if embedding.is_meta or any(parameter.is_meta for _, parameter in vectors):
        return None
    values = [float(parameter.detach().flatten()[0]) for _, parameter in _spread(vectors)]
    return {
        "model_type": text_config(model).model_type,
        "rows": rows,
        "embedding": embedding_samples(embedding.detach(), rows),
        "norms": [_short(value) for value in values],
        "matrices": matrix_samples(place.layers, layer),
    }


def differences(recorded: dict[str, Any], model: nn.Module, layer: int) -> str | None:
    """What tells `model` from the one the fingerprint was taken of; None if nothing does, or it cannot be known."""
    rows, available = recorded.get("rows"), input_embeddings(model).weight.shape[0]
    if not isinstance(rows, int) or not 1 <= rows <= available:
        return f"its vocabulary of {available} tokens is not the recorded one ({rows!r} sampled)"
    found = fingerprint(model, layer, rows)
    if found is None:
        return None
    if recorded.get("model_type") != found["model_type"]:
        return f"it is a {found['model_type']!r} model and not {recorded.get('model_type')!r}"
    for part in ("embedding", "norms"):
        expected = recorded.get(part)
        if not isinstance(expected, list) or len(expected) != len(found[part]):
            return f"its {part} are of another number"
        same = [close_enough(a, b) for a, b in zip(expected, found[part], strict=True)]
        if same and sum(same) / len(same) < _MATCHING:
            return f"{same.count(False)} of {len(same)} sampled {part} weights differ"
    matrices = compared_matrices(recorded, model, layer)
    if matrices.different:
        return (
            f"{len(matrices.different)} of {matrices.compared} sampled matrices differ, {matrices.different[0]!r} first"
        )
    return None


def compared_matrices(recorded: dict[str, Any], model: nn.Module, layer: int) -> Comparison:
    """What the matrices of a fingerprint say of `model`; fingerprints of earlier versions name none."""
    return compare_matrices(recorded.get("matrices"), find_decoder_layers(model).layers, layer)


def _spread(items: list[Any]) -> list[Any]:
    step = max(1, len(items) // _SAMPLES)
    return items[::step][:_SAMPLES]


def embedding_samples(matrix: Tensor, rows: int) -> list[float]:
    """A few values of an embedding `[vocabulary, width]`, spread over its first `rows` rows."""
    where = torch.linspace(0, rows - 1, _SAMPLES).long()
    columns = torch.linspace(0, matrix.shape[1] - 1, _SAMPLES).long()
    picked = matrix[where.to(matrix.device), columns.to(matrix.device)]
    return [_short(value) for value in picked.float().cpu().tolist()]


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def close_enough(a: Any, b: float) -> bool:
    """Whether a recorded value `a` is `b`, up to a step of bfloat16."""
    found = real(a)
    return found is not None and math.isclose(found, b, rel_tol=_TOLERANCE, abs_tol=1e-6)
