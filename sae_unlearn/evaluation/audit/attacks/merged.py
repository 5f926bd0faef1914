"""Copies of a model for attacks on its weights, with adapters merged as in a published model."""

import copy
from dataclasses import replace
from typing import Any, cast

from peft import PeftModel
from torch import nn

from sae_unlearn.evaluation.audit.attacks.base import NotPossible
from sae_unlearn.guardrail import detach_guardrail, guard_layers
from sae_unlearn.guardrail.attach import place_guardrail
from sae_unlearn.guardrail.storage.reading import Artefact


Guards = list[tuple[str, Artefact]]


def merged_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model with merged adapters.

    `model` is not changed; the copy needs the memory of a second model. Guardrails cannot be merged. They are attached
    to the copy as they are to the model.

    Raises:
        NotPossible: If an adapter of another type cannot be merged.
    """
    return guarded_again(*merged_parts(model))


def merged_parts(model: nn.Module) -> tuple[nn.Module, Guards]:
    """Return the merged copy without guardrails, and the active guardrails for `guarded_again`."""
    twin: Any = copy.deepcopy(model).eval()
    guards = _active_guards(twin)
    if guard_layers(twin):
        twin = detach_guardrail(twin)
    if not isinstance(twin, PeftModel):
        return twin, guards
    try:
        return twin.merge_and_unload(), guards
    except (AttributeError, NotImplementedError) as error:
        kinds = sorted({str(config.peft_type) for config in cast(Any, model).peft_config.values()})
        raise NotPossible(
            f"peft_type={kinds}: expected adapters that can be merged, got {error!r}. This attack needs merged weights."
        ) from error


def guarded_again(model: nn.Module, guards: Guards) -> nn.Module:
    """Return `model` with the guardrails attached."""
    for name, artefact in guards:
        # the attack changes the weights on purpose
        artefact.config.base_model = replace(artefact.config.base_model, fingerprint=None)
        model = place_guardrail(model, artefact, name)
    return model


def base_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model without any adapter."""
    twin: Any = copy.deepcopy(model).eval()
    if guard_layers(twin):
        twin = detach_guardrail(twin)
    return twin.unload() if isinstance(twin, PeftModel) else twin


def _active_guards(model: nn.Module) -> Guards:
    found = []
    for layer in guard_layers(model):
        for name in layer.in_force:
            guardrail = layer.guardrail(name)
            tensors = {key: tensor.detach().cpu().clone() for key, tensor in guardrail.tensors().items()}
            found.append((name, Artefact(copy.deepcopy(guardrail.config), tensors, None)))
    return found
