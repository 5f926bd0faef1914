"""The base model's weights under a guardrail: frozen with the first guardrail, and not saved.

A model whose only adapters are guardrails has nothing to train, so its base is frozen, as PEFT freezes it under a LoRA.
To train the base, call `requires_grad_()`. Saving the guardrail then warns, since it does not save the base. So it does
if any weight has changed, by a checksum of all values (`backbone.weight_sums`). A weight of another dtype or shape is
compared by the base's fingerprint.
"""

import warnings
from typing import Any

from torch import nn

from sae_unlearn.backbone.identity import differences, fingerprint
from sae_unlearn.backbone.layers import base_model_of
from sae_unlearn.backbone.weight_sums import WeightSum, changed_weights, weight_sums
from sae_unlearn.guardrail.tuner_layer import GuardrailTunerLayer, has_other_adapters


class BaseState:
    """State of a base model before its first guardrail.

    Args:
        model (nn.Module): The transformers model.

    Attributes:
        frozen: Names of the parameters that were trainable, and are frozen under the guardrail.
        fingerprint: A few weights of the base. None if they are not in memory.
        sums: A checksum of each weight of the base.
    """

    def __init__(self, model: nn.Module) -> None:
        self.frozen: list[str] = []
        self.depth = -1
        self.fingerprint: dict[str, Any] | None = None
        self.sums: dict[str, WeightSum] = {}

    def freeze(self, model: nn.Module, layer: int) -> None:
        """Freeze the base under its first guardrail, unless adapters of another method have frozen it.

        Args:
            model (nn.Module): The transformers model.
            layer (int): 0-based index of the guarded layer.
        """
        self.depth, self.fingerprint, self.sums = layer, fingerprint(model, layer), weight_sums(model)
        if has_other_adapters(model):
            return
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                self.frozen.append(name)

    def thaw(self, model: nn.Module) -> None:
        """Make trainable what `freeze` froze, after the last guardrail is removed.

        Under another adapter nothing changes: what it freezes stays frozen.
        """
        if has_other_adapters(model):
            return
        parameters = dict(model.named_parameters())
        for name in self.frozen:
            if name in parameters:
                parameters[name].requires_grad_()

    def changed(self, model: nn.Module) -> str | None:
        """Return a sentence if the base is trainable or was changed under guardrails, or None."""
        if has_other_adapters(model):  # they may train and save a bias or a whole module
            return None
        guards = {
            id(p) for module in model.modules() if isinstance(module, GuardrailTunerLayer) for p in module.parameters()
        }
        if any(p.requires_grad and id(p) not in guards for p in model.parameters()):
            return "The base model's weights are trainable"
        moved = self.fingerprint is not None and differences(self.fingerprint, model, self.depth) is not None
        if moved or changed_weights(self.sums, weight_sums(base_model_of(model))):
            return "The base model's weights have changed since the guardrail was attached"
        return None

    def warn_if_changed(self, model: nn.Module) -> None:
        """Warn if the base is trainable or was changed, since a guardrail is saved without it."""
        changed = self.changed(model)
        if changed is not None:
            warnings.warn(
                f"{changed}, and a guardrail is saved without them. Save the base model too, by "
                "`get_base_model().save_pretrained(...)`.",
                stacklevel=3,
            )
