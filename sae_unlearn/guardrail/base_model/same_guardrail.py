"""Check for the same guardrail on a model, as after running a notebook's cell again.

Its edit would be applied twice.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.weights import PARTS


# Fields on which the gate and the edit depend, in addition to the weights.
_BEHAVIOUR = (
    "action",
    "clamp_mode",
    "feature_evidence",
    "gate_feature_ids",
    "gate_levels",
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
    """Raise if the same guardrail is on the model under any name.

    If the name was chosen, or only the settings differ, it warns instead.

    Args:
        layers (Iterable[Any]): The guarded layers of the model.
        config (SAEGuardrailConfig): Config of the guardrail to attach.
        tensors (Mapping[str, Tensor]): Its weights, by the names of `PARTS`.
        named (bool, *optional*, defaults to False): True if a name was chosen for it, so that it is not a repetition of
            the same call.

    Raises:
        GuardrailError: If it is. The error names the attached one.
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
    """Return the configs of the guardrails after `layer` that have these weights, by name.

    Args:
        layers (Iterable[Any]): The guarded layers of the model.
        layer (int): Index of the one that is guarded.
        tensors (Mapping[str, Tensor]): By the names of `PARTS`.
        but (str, *optional*): A name to skip.
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
