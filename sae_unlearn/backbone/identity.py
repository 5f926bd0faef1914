"""Fingerprint of a base model, and a hash of a model with its active adapters.

The fingerprint identifies a base model in any dtype or quantization. It samples the input embedding and the
one-dimensional weights (norms and biases) up to the guarded layer, which the usual schemes do not quantize, and the
matrices of those layers, which fine-tuning changes. An attached LoRA or guardrail does not change it; a merged LoRA
does.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sae_unlearn.backbone.adapters_off import base_parameters
from sae_unlearn.backbone.fingerprint_matrices import Comparison, compare_matrices, matrix_samples
from sae_unlearn.backbone.layers import find_decoder_layers, input_embeddings, text_config
from sae_unlearn.checks import real


def model_key(model: nn.Module) -> str:
    """Return a short hash of a model's weights and active adapters, to validate caches and checkpoints.

    It covers the name, shape, dtype and up to 16 spread values of every parameter: enough to tell a tuned or otherwise
    quantized model from the base. For parameters that are not in memory (`meta`) it covers only name, shape and dtype.
    """
    digest = parameters_digest(model.named_parameters(), 16)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            # a guarded layer knows its active guardrails: PEFT's switch may concern another adapter
            in_force = getattr(module, "in_force", module.active_adapters)
            digest.update(f"{name} {sorted(in_force)} {module.disable_adapters}".encode())
    return digest.hexdigest()[:16]


def parameters_digest(parameters: Iterable[tuple[str, Tensor]], samples: int) -> "hashlib._Hash":
    """Return the SHA-256 of the name, shape, dtype and up to `samples` spread values of every parameter.

    More can be added to it. Of parameters that are not in memory (`meta`) it has no values.
    """
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.is_meta or parameter.numel() == 0:
            continue
        flat = parameter.detach().flatten()
        where = torch.linspace(0, flat.numel() - 1, min(samples, flat.numel()), dtype=torch.float64).long()
        digest.update(flat[where.to(flat.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest


_SAMPLES = 32
_TOLERANCE = 2.0**-7  # one step of bfloat16
_MATCHING = 0.95


def fingerprint(model: nn.Module, layer: int, rows: int | None = None) -> dict[str, Any] | None:
    """Return the fingerprint of a base model; None if the embedding or a norm is not in memory (`meta`).

    Form: `{"model_type": str, "rows": int, "embedding": [float], "norms": [float], "matrices": {name: [float]}}`.
    Matrices that cannot be read are left out.

    Args:
        model (Module): The bare transformers model.
        layer (int): The guarded layer; later weights are not read.
        rows (int, *optional*): Number of leading rows of the embedding that are sampled. By default the first quarter,
            because vocabularies are padded and extended at their end.
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
    """Return the first difference between `model` and the fingerprint; None if none is found."""
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
    """Return the comparison of a fingerprint's matrices with `model`. Older fingerprints have none."""
    return compare_matrices(recorded.get("matrices"), find_decoder_layers(model).layers, layer)


def _spread(items: list[Any]) -> list[Any]:
    step = max(1, len(items) // _SAMPLES)
    return items[::step][:_SAMPLES]


def embedding_samples(matrix: Tensor, rows: int) -> list[float]:
    """Return a few values of an embedding `[vocabulary, width]`, spread over its first `rows` rows."""
    where = torch.linspace(0, rows - 1, _SAMPLES).long()
    columns = torch.linspace(0, matrix.shape[1] - 1, _SAMPLES).long()
    picked = matrix[where.to(matrix.device), columns.to(matrix.device)]
    return [_short(value) for value in picked.float().cpu().tolist()]


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def close_enough(a: Any, b: float) -> bool:
    """Return True if a recorded value `a` equals `b` up to a step of bfloat16."""
    found = real(a)
    return found is not None and math.isclose(found, b, rel_tol=_TOLERANCE, abs_tol=1e-6)
