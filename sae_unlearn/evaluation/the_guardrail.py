"""The one guardrail of a model that is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

from sae_unlearn.guardrail import GuardrailError, list_guardrails, use_guardrails
from sae_unlearn.guardrail.layer import GuardrailDecoder, SAEGuardrailLayer
from sae_unlearn.guardrail.model import guard_layers


def the_guardrail(model: nn.Module, adapter_name: str | None = None) -> tuple[str, SAEGuardrailLayer]:
    """The guardrail of that name, or the only one, as its name and its layer.

    Raises:
        GuardrailError: there is none, there is none of that name, or no name was given and there are several.
    """
    found = {name: layer for layer in guard_layers(model) for name in layer.guard_config}
    if not found:
        raise GuardrailError(f"There is no guardrail on this {type(model).__name__}; attach one first.")
    if adapter_name is None and len(found) > 1:
        raise GuardrailError(f"The model has several guardrails, {sorted(found)}; name one by adapter_name.")
    name = next(iter(found)) if adapter_name is None else adapter_name
    if name not in found:
        raise GuardrailError(f"There is no guardrail {name!r} on the model; there are {sorted(found)}.")
    layer = found[name]
    layer.check_ready(name)
    return name, layer


def clamp_of(layer: SAEGuardrailLayer, name: str) -> Tensor:
    """The values that a guardrail clamps its features to, `[N]`; the tensor itself."""
    return cast(GuardrailDecoder, layer.sae_guardrail_decoder[name]).clamp


@contextmanager
def alone_and_clamping(model: nn.Module, name: str) -> Iterator[None]:
    """Of the guardrails only this one is in force, and it clamps, whatever its action; afterwards all is as before."""
    _, layer = the_guardrail(model, name)
    if any(each.disable_adapters for each in guard_layers(model)):
        raise GuardrailError("The model's adapters are disabled; look at the guardrail outside of `disable_adapter()`.")
    config = layer.guard_config[name]
    active = [one.name for one in list_guardrails(model) if one.active]
    action = config.action
    try:
        use_guardrails(model, name)
        config.action = "clamp"
        yield
    finally:
        config.action = action
        use_guardrails(model, active)
