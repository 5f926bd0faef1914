"""The base model: a model with its adapters disabled."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn

from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail import guard_layers


def has_adapters(model: nn.Module) -> bool:
    """Return True if the model has active adapters, which `without_adapters` can disable."""
    if isinstance(model, PeftModel) and model.get_model_status().enabled is not False:
        return True
    return any(layer.in_force for layer in guard_layers(model))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """Disable the model's adapters inside the `with` block, which gives the base model.

    Raises:
        UnlearnError: If no adapter is active.
    """
    if not has_adapters(model):
        raise UnlearnError(
            f"base=None: expected a model with active adapters, got {type(model).__name__} without. Pass base=."
        )
    with adapters_off(model):
        yield model
