"""A model as it is without its adapters."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn

from sae_unlearn.backbone.adapters_off import adapters_off as other_adapters_off
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.offline import guards_off


def has_adapters(model: nn.Module) -> bool:
    """Whether there are adapters in force that `without_adapters` could put out of force."""
    if isinstance(model, PeftModel) and model.get_model_status().enabled is not False:
        return True
    return any(layer.in_force for layer in guard_layers(model))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The same model with its adapters out of force inside the `with` block: the base model.

    Raises:
        ValueError: there are none in force.
    """
    if not has_adapters(model):
        raise ValueError(f"This {type(model).__name__} has no adapters in force; pass the base model as base=.")
    with adapters_off(model):
        yield model


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Adapters and guardrails are out of force inside the `with` block, if there are any. `disable_adapter()` of a LoRA
    alone leaves a guardrail beside it in force."""
    with guards_off(model), other_adapters_off(model):
        yield
