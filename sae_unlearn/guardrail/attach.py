"""Attaching a guardrail to a model, and detaching it."""

import copy
import os
import warnings
from dataclasses import replace
from typing import Any, cast

import torch
from peft import PeftMixedModel, PeftModel
from torch import nn

from sae_unlearn.backbone.layers import bare_model, find_decoder_layers, uncompiled
from sae_unlearn.backbone.private_api import forget_loaded_adapters, remove_hooks
from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.adapter_names import free_name
from sae_unlearn.guardrail.base_model.match import check_belongs
from sae_unlearn.guardrail.base_model.same_guardrail import check_new
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.layout import SEALS
from sae_unlearn.guardrail.config_parts.validation import check_threshold
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.model import SAEGuardrailModel, guard_layers, remove_call_hooks, remove_guard
from sae_unlearn.guardrail.peft_type import CHILD, MODEL_TAGS
from sae_unlearn.guardrail.refusal_text import compare, tokenizer_of
from sae_unlearn.guardrail.runtime.callers import hook_tuners
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.guarded_model import GuardedModel
from sae_unlearn.guardrail.storage.reading import Artefact, check_plain_text
from sae_unlearn.guardrail.weights import EncoderRows, check_tensors, tensors_of
from sae_unlearn.sae import SparseAutoencoder


@as_guardrail_error()
def attach_guardrail(
    model: nn.Module,
    source: str | os.PathLike[str] | GuardrailFolder | SAEGuardrailConfig,
    *,
    adapter_name: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    sae: SparseAutoencoder | None = None,
    check_base: bool = True,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> PeftModel:
    """Attach a guardrail to a model. Everything is checked before the model is changed.

    Args:
        model (Module): A causal language model of transformers; or a `PeftModel` with guardrails or a LoRA, which the
            guardrail joins. All stay active.
        source (str, PathLike, GuardrailFolder or SAEGuardrailConfig): A local folder, a Hub repository, a
            `GuardrailFolder`, or an `SAEGuardrailConfig` with `feature_ids`, `threshold` and `clamp_value`, whose
            weights come from `sae` (or from the SAE of its `sae_source`).
        adapter_name (str, *optional*): Its name on the model. Defaults to "default", or "guardrail" if the model has an
            adapter.
        revision (str, *optional*): Branch, tag or commit of the Hub repository.
        subfolder (str, *optional*): Folder inside the source.
        sae (SparseAutoencoder, *optional*): The SAE, if `source` is a config.
        check_base (bool, *optional*, defaults to True): True to compare the model with the fingerprint of the one that
            the guardrail was fitted on. False only warns, for instance for a fine-tuned descendant.
        token (str or bool, *optional*): As in `huggingface_hub`.
        cache_dir (str or PathLike, *optional*): As in `huggingface_hub`.
        local_files_only (bool, *optional*, defaults to False): As in `huggingface_hub`.

    Returns:
        A `PeftModel` with the guardrail active. The model is wrapped, not copied. A compiled model is unwrapped first,
        so compile the returned one.

    Raises:
        GuardrailError: If the folder is malformed, the guardrail does not belong to this model, the name is taken, or
            no name is passed and the same guardrail is attached already. For the same weights under another name or
            with other settings it only warns: if both fire, the edit is applied twice.
    """
    bare = bare_model(model)
    name = free_name(model, adapter_name)
    if isinstance(source, SAEGuardrailConfig):
        artefact = _from_config(copy.deepcopy(source), sae)
    elif not isinstance(source, (str, os.PathLike, GuardrailFolder)):
        raise GuardrailError(f"source={source!r:.60}: expected a folder, a Hub id or an SAEGuardrailConfig.")
    else:
        artefact = GuardrailFolder.open(
            source,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        ).artefact()
        check_plain_text(artefact.config)
        if artefact.config.refusal is not None and artefact.config.refusal_ids:
            compare(artefact.config, tokenizer_of(bare))
    check_belongs(artefact.config, bare, check_base)
    if artefact.damage is not None:
        raise GuardrailError(
            f"{source}: {artefact.damage}. Download or fit it again; if you changed it yourself, remove "
            f"{' and '.join(map(repr, SEALS))} from its config."
        )
    check_new(guard_layers(model), artefact.config, artefact.tensors, named=adapter_name is not None)
    return place_guardrail(model, artefact, name)


def detach_guardrail(model: nn.Module, adapter_name: str | None = None) -> nn.Module:
    """Detach one guardrail or all. The model then computes the same bits as before it was attached.

    Args:
        model (Module): A model with guardrails.
        adapter_name (str, *optional*): Name of the guardrail. Defaults to all.

    Returns:
        The base model if no other adapter is on it, else `model`.

    Raises:
        GuardrailError: If the model has no guardrail of that name.
    """
    layers = [layer for layer in guard_layers(model) if adapter_name is None or adapter_name in layer.guard_config]
    if not layers:
        raise GuardrailError(
            f"adapter_name={adapter_name!r}: expected a guardrail of the model, got "
            f"{sorted(name for layer in guard_layers(model) for name in layer.guard_config)}."
        )
    bare = bare_model(model)
    active = _active_guards(model)
    configs = getattr(model, "peft_config", None) or getattr(bare, "peft_config", {})
    for decoder_layer in find_decoder_layers(bare).layers:
        layer = getattr(decoder_layer, CHILD, None)
        if layer is None:
            continue
        for name in [n for n in layer.guard_config if adapter_name in (None, n)]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PEFT warns that another adapter becomes active
                layer.delete_adapter(name)
            configs.pop(name, None)
        if not layer.guard_config:
            remove_guard(decoder_layer)
    whole = uncompiled(model)
    remove_call_hooks(bare, whole)
    if configs:
        if isinstance(whole, PeftModel) and isinstance(whole.base_model, SAEGuardrailModel):
            _activate(whole, [name for name in active if name in configs])
        return model
    if hasattr(bare, "peft_config"):
        del bare.peft_config
    forget_loaded_adapters(bare)
    return bare if isinstance(whole, PeftModel) else model


def place_guardrail(model: nn.Module, artefact: Artefact, name: str) -> PeftModel:
    """Attach a checked guardrail, enable it in addition to the active ones, and check its weights.

    If that fails, the model is unchanged.
    """
    model, bare = uncompiled(model), bare_model(model)
    if isinstance(model, PeftMixedModel):
        raise GuardrailError(
            "model: expected a model or a PeftModel, got a PeftMixedModel. Load its LoRAs as PeftModel."
        )
    if isinstance(model, PeftModel) and not model.peft_config:
        raise GuardrailError(
            "model: expected adapters in the PeftModel, got none, as after `delete_adapter`. Attach to "
            "`model.get_base_model()`."
        )
    had_configs = hasattr(bare, "peft_config")
    active = {layer: list(layer.active_adapters) for layer in guard_layers(model)}
    try:
        return _place(model, artefact, name)
    except BaseException:
        _take_back(model, bare, name, active, had_configs)
        raise


def _place(model: nn.Module, artefact: Artefact, name: str) -> PeftModel:
    config = artefact.config
    config.inference_mode = True
    active = _active_guards(model)
    if not isinstance(model, PeftModel):
        model = GuardedModel(model, config, adapter_name=name)
    elif isinstance(model.base_model, SAEGuardrailModel):
        with warnings.catch_warnings():
            # PEFT warns of names that are part of its prefix, since weights may get lost; a guardrail's do not
            warnings.filterwarnings("ignore", message="Adapter name .* should not be contained in the prefix")
            model.add_adapter(name, config)
        _activate(model, [*active, name])
    else:
        with warnings.catch_warnings():
            # PEFT warns that the model has adapters; the guardrail joins their configs
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            SAEGuardrailModel(bare_model(model), config, name)
        hook_tuners(model, bare_model(model))
    for layer in guard_layers(model):  # PEFT activates only the newest one if it does not know the others
        layer.activate([*active, name])
    bare = bare_model(model)
    layer = getattr(find_decoder_layers(bare).layers[config.layer], CHILD)
    _write(layer, name, artefact.tensors)
    if hasattr(bare, "add_model_tags"):
        cast(Any, bare).add_model_tags(MODEL_TAGS)
    return model


def _take_back(
    model: nn.Module, bare: nn.Module, name: str, active: dict[SAEGuardrailLayer, list[str]], had_configs: bool
) -> None:
    """Undo a `_place` that failed."""
    for decoder_layer in find_decoder_layers(bare).layers:
        layer = getattr(decoder_layer, CHILD, None)
        if layer is None:
            remove_hooks(decoder_layer, SAEGuardrailLayer)  # of a layer that was never added
        elif name in layer.guard_config:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                layer.delete_adapter(name)
            if not layer.guard_config:
                remove_guard(decoder_layer)
    remove_call_hooks(bare, model)
    for owner in (model, bare):
        getattr(owner, "peft_config", {}).pop(name, None)
    if not had_configs and hasattr(bare, "peft_config"):
        del bare.peft_config
    if isinstance(model, PeftModel) and isinstance(model.base_model, SAEGuardrailModel):
        _activate(model, _active_guards(model))
    for layer, names in active.items():
        layer.activate(names)


def _active_guards(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(n for layer in guard_layers(model) for n in layer.active_adapters))


def _from_config(config: SAEGuardrailConfig, sae: SparseAutoencoder | None) -> Artefact:
    if not config.feature_ids or config.threshold is None or config.clamp_value is None:
        raise GuardrailError(
            f"source: expected a config with feature_ids, threshold and clamp_value, got {config.feature_ids}, "
            f"{config.threshold} and {config.clamp_value}. Measure them with `fit_guardrail`."
        )
    if config.gate_levels:
        raise GuardrailError(
            f"gate_levels={config.gate_levels}: expected 0 in a config without weights, since no SAE holds a direction "
            "that a fit has found. Attach the folder that the fit saved."
        )
    if sae is None:
        source = config.sae_source or {}
        if not source.get("id") or source.get("local"):
            raise GuardrailError(
                "sae=None: expected an SAE, since a config has no weights. Pass `sae=` or `sae_source`."
            )
        sae = SparseAutoencoder.from_pretrained(
            source["id"], subfolder=source.get("subfolder"), revision=source.get("revision")
        )
    if sae.layer not in (None, config.layer):
        raise GuardrailError(f"layer={config.layer}: expected {sae.layer}, the layer that the SAE reads.")
    if config.base_model.hidden_size is None:
        config.base_model = replace(config.base_model, hidden_size=sae.d_in)
    check_threshold(config.threshold, config, None)
    if not sae.exact_in_slices:
        kind = f"input_norm={sae.input_norm!r}" if sae.k is None else f"topk SAE (k={sae.k})"
        raise GuardrailError(
            f"sae: expected one that is sliced exactly, got {kind}. Approximate it on text with "
            "`fit_guardrail(..., topk='threshold')`."
        )
    part = sae.slice([*config.feature_ids, *(config.gate_feature_ids or ())])
    clamp = torch.full((config.num_features,), float(config.clamp_value))
    tensors = tensors_of(EncoderRows.of(part), part.W_dec[: len(clamp)], clamp)
    check_tensors(tensors, "the SAE")
    return Artefact(config, tensors, None)


def _activate(model: PeftModel, names: list[str]) -> None:
    model.base_model.set_adapter(names, inference_mode=True)
    if model.active_adapter not in model.peft_config:  # PEFT reads the config of this one at every call
        model.active_adapter = next(iter(model.peft_config))


def _write(layer: SAEGuardrailLayer, name: str, tensors: dict[str, Any]) -> None:
    with torch.no_grad():
        for key, parameter in layer.guardrail(name).tensors().items():
            parameter.copy_(tensors[key])
            if not torch.equal(parameter.cpu().to(tensors[key].dtype), tensors[key]):
                raise GuardrailError(f"{key} differs on the model from the file. Attach it again.")
