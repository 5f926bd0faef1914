"""A copy of a model to be attacked, with its adapters merged into the weights as someone would publish it."""

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
    """A copy to be attacked: `model` stays as it is, and the memory of a second one is needed meanwhile.

    Guardrails cannot be merged and are on the copy as they are on the model.

    Raises:
        NotPossible: an adapter of another kind cannot be merged.
    """
    return guarded_again(*merged_parts(model))


def merged_parts(model: nn.Module) -> tuple[nn.Module, Guards]:
    """The same copy without its guardrails, and the guardrails that are active, for `guarded_again`."""
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
            f"Adapters of type {kinds} cannot be merged ({error}); this attack is on merged weights."
        ) from error


def guarded_again(model: nn.Module, guards: Guards) -> nn.Module:
    """`model` with the guardrails put on it."""
    for name, artefact in guards:
        # the weights are no longer the base's, and need not be
        artefact.config.base_model = replace(artefact.config.base_model, fingerprint=None)
        model = place_guardrail(model, artefact, name)
    return model


def base_copy(model: nn.Module) -> nn.Module:
    """A copy of the model below all adapters."""
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
