"""`SAEGuardrailModel`: places guardrails in a model, as PEFT's tuners place adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from sae_unlearn.backbone.layers import DecoderLayers, check_module, find_decoder_layers, text_config
from sae_unlearn.backbone.private_api import remove_hooks
from sae_unlearn.errors import GuardrailError, GuardrailUnsupported, as_guardrail_error
from sae_unlearn.guardrail.base_model.match import check_belongs
from sae_unlearn.guardrail.base_model.nesting import refuse_nested
from sae_unlearn.guardrail.base_model.same_guardrail import warn_of_same_weights, with_these_weights
from sae_unlearn.guardrail.base_model.saving import stop_watching, watch_saving
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.peft_type import CHILD, METHOD
from sae_unlearn.guardrail.runtime.callers import unhook_tuners
from sae_unlearn.guardrail.runtime.compiled import compile_again, refuse_unnoticed, use_earlier_code
from sae_unlearn.guardrail.runtime.continuous_batching import watch_generation
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, ModelHooks, hooks_of, refuse_rows_by_name
from sae_unlearn.guardrail.weights import PARTS


class SAEGuardrailModel(BaseTuner):
    """Places SAE guardrails on a model.

    PEFT creates it; users call `get_peft_model` or `attach_guardrail`.

    Args:
        model (nn.Module): The transformers model.
        peft_config (SAEGuardrailConfig or mapping): A config, or a mapping from adapter names to configs.
        adapter_name (str): Name of the guardrail.

    Attributes:
        model (nn.Module): The model, with the guardrails as children of its decoder layers.
        peft_config (dict): The configs by adapter name.

    Raises:
        GuardrailError: If the model is a `PeftModel` (PEFT would load no weights, and only warn), does not have the
            layer, or has another width.
    """

    prefix: str = f"{METHOD}_"
    tuner_layer_cls = SAEGuardrailLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    @property
    def peft_config(self) -> dict[str, Any]:
        """Configs by adapter name. On a model with adapters of another method, all are in one dict."""
        own = self.__dict__.get("_configs")
        if own is None:
            own = getattr(self.__dict__.get("_modules", {}).get("model"), "peft_config", None)
        if own is None:
            raise AttributeError("peft_config")  # `BaseTuner` checks for it
        return own

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        # A second tuner sets this on the `PeftModel` that it wraps, with its own configs among ours.
        if "_configs" in self.__dict__:
            refuse_nested(self.model, configs)
        self.__dict__["_configs"] = configs

    def _pre_injection_hook(self, model: nn.Module, config: SAEGuardrailConfig, adapter_name: str) -> None:
        if isinstance(model, PeftModel):
            raise GuardrailError(
                "model: expected a transformers model, got a PeftModel, in which PEFT would load no weights. Use "
                "`attach_guardrail(model, ...)`, which adds to it."
            )

    def _prepare_adapter_config(
        self, peft_config: SAEGuardrailConfig, model_config: dict[str, Any]
    ) -> SAEGuardrailConfig:
        if peft_config.num_features < 1:
            raise GuardrailError("feature_ids=None: expected the guarded features' ids in their SAE. Pass them.")
        # `attach_guardrail` refuses other weights; PEFT's own loaders have no option to override
        check_belongs(peft_config, self.model, check_base=False)
        place = find_decoder_layers(self.model)
        depth, width = len(place.layers), text_config(self.model).hidden_size
        peft_config.base_model = replace(peft_config.base_model, hidden_size=width, num_layers=depth)
        peft_config.target_modules = {f"{place.name}.{peft_config.layer}"}  # type: ignore[misc]  # derived, not a field
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: SAEGuardrailConfig, key: str) -> bool:
        return key in (peft_config.target_modules or ())  # the full name: a suffix would match vision towers too

    def _create_and_replace(
        self,
        peft_config: SAEGuardrailConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        refuse_unnoticed()
        place = find_decoder_layers(self.model)
        if hasattr(target, CHILD):
            getattr(target, CHILD).update_layer(adapter_name, peft_config, target)
        else:
            self._add_layer(place, adapter_name, peft_config, target)
        for module in (target, place.backbone, self.model):
            compile_again(module)

    def _add_layer(
        self, place: DecoderLayers, adapter_name: str, peft_config: SAEGuardrailConfig, target: nn.Module
    ) -> None:
        """Guard a decoder layer that has no guardrail yet, and the model if it has none."""
        caller = hooks_of(self.model, ModelHooks)
        if caller is None:
            caller = ModelHooks(self.model)
            caller.install(self.model)
            watch_generation()
        watch_saving(self.model, target)
        hooks = hooks_of(place.backbone, BackboneHooks)
        if hooks is None:
            hooks = BackboneHooks(place.backbone, place.name.rpartition(".")[2], caller)
            hooks.install(place.backbone)
        hooks.caller = caller
        guard = SAEGuardrailLayer(target, adapter_name, peft_config, self.model)
        target.add_module(CHILD, guard)
        hooks.guards[peft_config.layer] = guard
        guard.guards_of_model = cast(Any, hooks.guards)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        remove_guard(parent)  # reached from `unload()` only
        remove_call_hooks(self.model)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: SAEGuardrailConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Return the tensors of one guardrail, to be saved.

        PEFT removes from `state_dict` each key with the name of another adapter between its dots. If that adapter is
        called "guardrail", or like another part of the path to the tensors, ours are removed too. The model still has
        them.
        """
        hooks = hooks_of(model.get_base_model() if isinstance(model, PeftModel) else model, ModelHooks)
        if hooks is not None:
            hooks.base.warn_if_changed(model)
        places = [f".{part}.{adapter_name}." for part in SAEGuardrailLayer.adapter_layer_names]

        def own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor for key, tensor in tensors.items() if any(place in key for place in places)}

        found = own(state_dict)
        return own(model.state_dict()) if state_dict and len(found) < len(PARTS) else found

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SAEGuardrailConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Remap as PEFT does, after a check of the name. PEFT calls it before it loads weights.

        If the name is taken, PEFT's `load_adapter` loads into the existing guardrail and would mix two: the weights of
        one under the config of the other.

        Raises:
            GuardrailError: If a guardrail of that name already has weights.
        """
        cls.check_free(model, config, adapter_name)
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        tensors = {
            key: tensor
            for key, path in PARTS.items()
            for name, tensor in remapped.items()
            if name.endswith(f".{path.replace('.', f'.{adapter_name}.')}")
        }
        cls.warn_if_known(model, config, adapter_name, tensors)
        return remapped

    @staticmethod
    def warn_if_known(
        model: nn.Module, config: SAEGuardrailConfig, adapter_name: str, tensors: dict[str, Tensor]
    ) -> None:
        """Warn if another guardrail of the model has these weights, by their keys in `PARTS`."""
        for other in list(with_these_weights(guard_layers(model), config.layer, tensors, but=adapter_name))[:1]:
            warn_of_same_weights(other)

    @staticmethod
    def check_free(model: nn.Module, config: SAEGuardrailConfig, adapter_name: str) -> None:
        """Raise unless weights can be loaded under this name.

        Raises:
            GuardrailError: If a guardrail of that name already has weights.
        """
        if config.init_weights and any(_has_arrived(layer, adapter_name) for layer in guard_layers(model)):
            raise GuardrailError(
                f"adapter_name={adapter_name!r}: expected a free name, got that of a guardrail on the model. "
                "Choose another "
                "name, or remove it first: `delete_adapter` or `detach_guardrail`."
            )

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Freeze the base under its first guardrail, whose own weights are never trained. See `base_state`."""
        guardrails = [config for layer in guard_layers(model) for config in layer.guard_config.values()]
        hooks = hooks_of(model, ModelHooks)
        if hooks is not None and len(guardrails) == 1:
            hooks.base.freeze(model, guardrails[0].layer)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        for layer in guard_layers(self.model):  # this switch is only for guardrails, whatever else is on the model
            layer.switch(enabled)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active guardrails.

        PEFT's own method would disable the `modules_to_save` of a LoRA on the same model.
        """
        for layer in guard_layers(self.model):
            layer.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model through its hooks."""
        return self.model(*args, **kwargs)  # PEFT 0.20 calls the model's `forward`, past its hooks

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        refuse_rows_by_name(kwargs)  # PEFT removes these two before it calls the model
        yield

    def _check_merge_allowed(self) -> None:
        raise GuardrailUnsupported("A guardrail depends on its input and cannot be merged. Remove it with `unload()`.")


def _has_arrived(layer: SAEGuardrailLayer, name: str) -> bool:
    """True if guardrail `name` is at this layer and its weights, which begin as NaN, were set."""
    if name not in layer.guard_config:
        return False
    weight = layer.guardrail(name).encoder.weight
    return not (weight.is_meta or bool(weight.isnan().all()))


def guard_layers(model: nn.Module) -> list[SAEGuardrailLayer]:
    """Return the guarded layers of a model, bare or in a `PeftModel`, in order.

    `layer.guardrail(name)` gives a guardrail's config, encoder and decoder.

    Args:
        model (nn.Module): Any model.

    Raises:
        GuardrailError: If `model` is not a module.
    """
    with as_guardrail_error():
        check_module(model)
    return [module for module in model.modules() if isinstance(module, SAEGuardrailLayer)]


def remove_call_hooks(model: nn.Module, whole: nn.Module | None = None) -> None:
    """Drop removed guardrails from the hooks on model and backbone.

    The hooks are removed with the last guardrail.

    Args:
        model (nn.Module): The transformers model.
        whole (nn.Module, *optional*): The model with the tuners of other methods.
    """
    left = guard_layers(model)
    backbone = find_decoder_layers(model).backbone
    hooks = hooks_of(backbone, BackboneHooks)
    if hooks is not None:
        for index in [index for index, guard in hooks.guards.items() if not any(guard is g for g in left)]:
            del hooks.guards[index]
    if not left:
        model_hooks = hooks_of(model, ModelHooks)
        if model_hooks is not None:
            model_hooks.base.thaw(model)
        stop_watching(model)
        remove_hooks(model, ModelHooks)
        unhook_tuners(model if whole is None else whole)
        remove_hooks(backbone, BackboneHooks)
    for module in (model, backbone):
        (compile_again if left else use_earlier_code)(module)


def remove_guard(decoder_layer: nn.Module) -> None:
    """Remove the guardrails of a decoder layer without a trace."""
    remove_hooks(decoder_layer, SAEGuardrailLayer)
    delattr(decoder_layer, CHILD)
    use_earlier_code(decoder_layer)
