"""PEFT's interface of a guarded layer: activating, enabling, merging, and what its base layer is.

One rule holds for all of it: switching another adapter never changes whether a guardrail guards. PEFT and transformers
call every tuner layer of a model when they activate, disable or merge an adapter, whatever method it belongs to.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from sae_unlearn.guardrail.config import SAEGuardrailConfig


_OF_A_WRAPPED_LAYER = ("weight", "bias")  # `BaseTunerLayer` has them; a decoder layer usually has neither


class GuardrailTunerLayer(BaseTunerLayer):
    """The part of `SAEGuardrailLayer` that PEFT and transformers call.

    Attributes:
        guard_config: the configs by adapter name.
        guards_of_model: the guarded layers of the model by their index, this one included.
        disable_adapters: PEFT's switch as PEFT last set it; `off` says whether the guardrails are disabled.
    """

    adapter_layer_names = ("sae_guardrail_encoder", "sae_guardrail_decoder")
    other_param_names = ("guard_config",)

    guard_config: dict[str, SAEGuardrailConfig]
    guards_of_model: dict[int, "GuardrailTunerLayer"]

    # of `BaseTunerLayer`, which has no types
    active_adapters: list[str]
    disable_adapters: bool
    delete_adapter: Callable[..., None]

    def start(self, decoder_layer: nn.Module, adapter_name: str, model: nn.Module) -> None:
        """Set what `BaseTunerLayer` keeps for each layer.

        Args:
            decoder_layer (Module): The guarded layer.
            adapter_name (str): Name of the first guardrail, which becomes the active one.
            model (Module): The transformers model.
        """
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._off = False
        self._bypassed = False
        self._active_adapter: str | list[str] = adapter_name
        # in tuples, so that they do not become children of their own child
        self._home = (decoder_layer,)
        self._model = (model,)

    # --------------------------------------------------------------------------------------------- enabling, disabling

    @property
    def off(self) -> bool:
        """True if the guardrails of this layer are disabled, whichever are active."""
        return self._off or self._bypassed

    @property
    def in_force(self) -> list[str]:
        """Names of the guardrails that act on a pass. A pass that skips `guard` bypasses them."""
        if self._off or self._bypassed:
            return []
        names = self._active_adapter
        return [name for name in ([names] if isinstance(names, str) else names) if name in self.guard_config]

    @property
    def refuses(self) -> bool:
        """True if a guardrail that acts on a pass has `action="refuse"`."""
        return any(self.guard_config[name].action == "refuse" for name in self.in_force)

    def enable_adapters(self, enabled: bool) -> None:
        """Enable or disable the guardrails of this layer, for PEFT's and transformers' switches.

        With adapters of another method on the model, the switch is theirs: it disables them, and the guardrails stay
        enabled. `enable_guardrails(model, [])` disables guardrails, whatever else is on the model.
        """
        super().enable_adapters(enabled)
        if enabled or not has_other_adapters(self._model[0]):
            self._off = not enabled

    def switch(self, enabled: bool) -> None:
        """Enable or disable the guardrails of this layer, whatever else is on the model."""
        super().enable_adapters(enabled)
        self._off = not enabled

    def bypass(self, bypassed: bool) -> None:
        """Take the guardrails of this layer out of the pass, or back into it, whatever PEFT's switches say."""
        self._bypassed = bypassed

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Set the active guardrails.

        A list with only names of other methods' adapters changes nothing: transformers activates a LoRA on every tuner
        layer of the model, which would disable guardrails silently. Nor does an empty list on a model with other
        adapters: `enable_guardrails(model, [])` disables guardrails.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        known = {name for guard in self.guards_of_model.values() for name in guard.guard_config}
        if known and names and not known & set(names):
            return
        if not names and self.guard_config and has_other_adapters(self._model[0]):
            return
        self.activate(names, inference_mode)

    def activate(self, names: list[str], inference_mode: bool = True) -> None:
        """Make exactly these the active guardrails of this layer; names that it does not have are ignored."""
        super().set_adapter(names, inference_mode=inference_mode)

    # --------------------------------------------------------------------------------------------------------- merging

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave the guardrails unmerged: `merge_adapter()` of a LoRA calls this on every tuner layer.

        A guardrail depends on its input and cannot be merged; `SAEGuardrailModel` refuses that before anything is
        merged.
        """
        named = self._own(adapter_names or ())
        if named:  # not an error: the layers before this one are merged already
            warnings.warn(
                f"adapter_names={named}: a guardrail cannot be merged into weights; it stays as it is.", stacklevel=2
            )

    def unmerge(self) -> None:
        """Leave the guardrails as they are: they are never merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> "GuardrailTunerLayer":
        """Return this layer, unmerged."""
        return self  # `SAEGuardrailModel._replace_module` removes the child and its hooks

    def _own(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.guard_config]

    # -------------------------------------------------------------------------------------------------- the base layer

    def get_base_layer(self) -> nn.Module:
        """The guarded decoder layer. It is this layer's parent, and is not wrapped."""
        return self._home[0]

    @property
    def weight(self) -> Tensor:
        """The decoder layer's own `weight`.

        Raises:
            AttributeError: it has none, as decoder layers usually do.
        """
        return self._of_home("weight")

    @property
    def bias(self) -> Tensor:
        """The decoder layer's own `bias`.

        Raises:
            AttributeError: it has none, as decoder layers usually do.
        """
        return self._of_home("bias")

    def there(self, names: Iterable[str]) -> list[str]:
        """`names` without those of a wrapped layer that the decoder layer does not have."""
        return [n for n in names if n not in _OF_A_WRAPPED_LAYER or hasattr(self._home[0], n)]

    def _of_home(self, name: str) -> Tensor:
        # from here and not from the decoder layer: the error then names this class
        if not hasattr(self._home[0], name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return cast(Tensor, getattr(self._home[0], name))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT reads the device from the weight of `base_layer`; `update_layer` has done this already
        for attribute in self.adapter_layer_names:
            module: Any = getattr(self, attribute)[adapter_name]
            if device is not None and not any(p.is_meta for p in module.parameters()):
                module.to(device)


def other_adapter_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of other methods' adapters: tuner layers, and wrappers of trained modules."""
    for name, module in model.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not isinstance(
            module, GuardrailTunerLayer
        ):
            yield name, module


def has_other_adapters(model: nn.Module) -> bool:
    """True if an adapter of another method is on the model."""
    return next(other_adapter_modules(model), None) is not None
