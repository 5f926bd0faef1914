"""Dropout while an adapter is trained: the adapter's own, and none of the frozen model's."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def without_base_dropout(model: nn.Module) -> None:
    """Put a model's modules into evaluation mode until the next `train()`, all but those of its adapters.

    The loss compares with states and predictions of the base model as it is used. Dropout in either pass, as GPT-2 has
    it, would count as a change of them, at the first step as at the last. Modules that recompute their activations
    (gradient checkpointing) stay in training mode, without which they do not.
    """
    if isinstance(model, BaseTunerLayer):
        without_base_dropout(model.get_base_layer())
        return
    model.training = bool(getattr(model, "gradient_checkpointing", False)) and model.training
    for child in model.children():
        without_base_dropout(child)
