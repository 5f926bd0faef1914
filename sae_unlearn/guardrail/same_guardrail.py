"""The same guardrail on a model twice, as when a cell of a notebook is run again: its edit would be made twice."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.weights import PARTS


# What the gate and the edit go by, beside the weights.
_BEHAVIOUR = (
    "action",
    "clamp_mode",
    "feature_evidence",
    "gate_feature_ids",
    "gate_scope",
    "refusal_ids",
    "statistic",
    "statistic_kwargs",
    "sticky",
    "threshold",
    "tokens",
)


def check_new(
    layers: Iterable[Any], config: SAEGuardrailConfig, tensors: Mapping[str, Tensor], named: bool = False
) -> None:
    """Raise if a guardrail is on the model already, under whatever name; warn if it was meant to be, or if only its
    settings are others.

    Args:
        layers: the guarded layers of the model.
        config: of the guardrail that is to be attached.
        tensors: its weights, by the names of `PARTS`.
        named: True if a name was chosen for it, so that it is no repetition of the same call.

    Raises:
        GuardrailError: naming the one that is there.
    """
    there = with_these_weights(layers, config.layer, tensors)
    same = [name for name, other in there.items() if all(getattr(config, f) == getattr(other, f) for f in _BEHAVIOUR)]
    if same and not named:
        raise GuardrailError(
            f"This guardrail is on the model already, as {same[0]!r}: its edit would be made twice. Detach it first: "
            f"`detach_guardrail(model, {same[0]!r})`."
        )
    for name in [*same, *there][:1]:
        warn_of_same_weights(name)


def warn_of_same_weights(name: str) -> None:
    """Warn that a second guardrail has the weights of the one called `name`."""
    warnings.warn(
        f"The guardrail {name!r} on this model has the same weights: where both fire, the edit is made twice. Use one "
        f"of them: `enable_guardrails` or `detach_guardrail(model, {name!r})`.",
        stacklevel=4,
    )


def with_these_weights(
    layers: Iterable[Any], layer: int, tensors: Mapping[str, Tensor], but: str | None = None
) -> dict[str, SAEGuardrailConfig]:
    """The configs of the guardrails after `layer` that have these weights, by name.

    Args:
        layers: the guarded layers of the model.
        layer: index of the one that is guarded.
        tensors: by the names of `PARTS`.
        but: a name that is not looked at.
    """
    return {
        name: config
        for guard in layers
        for name, config in guard.guard_config.items()
        if config.layer == layer and name != but and all(_equal(guard, name, key, tensors) for key in PARTS)
    }


def _equal(guard: Any, name: str, key: str, tensors: Mapping[str, Tensor]) -> bool:
    found = guard.guardrail(name).tensors()[key]
    wanted = tensors.get(key)
    if wanted is None or found.is_meta or found.shape != wanted.shape:
        return False
    return torch.equal(found.detach().cpu().to(wanted.dtype), wanted.cpu())
