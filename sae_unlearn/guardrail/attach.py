"""Putting a guardrail on a model, and taking it off."""

import copy
import os
import warnings
from dataclasses import replace
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from sae_unlearn.backbone.layers import bare_model, find_decoder_layers, uncompiled
from sae_unlearn.backbone.private_api import forget_loaded_adapters, remove_hooks
from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.base_match import check_belongs
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_validation import check_threshold
from sae_unlearn.guardrail.layer import SAEGuardrailLayer, remove_guard
from sae_unlearn.guardrail.layout import SEALS
from sae_unlearn.guardrail.model import SAEGuardrailModel, guard_layers, remove_call_hooks
from sae_unlearn.guardrail.peft_type import CHILD, MODEL_TAGS
from sae_unlearn.guardrail.refusal_text import compare, tokenizer_of
from sae_unlearn.guardrail.same_guardrail import check_new
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.guarded_model import GuardedModel
from sae_unlearn.guardrail.storage.reading import Artefact, check_plain_text
from sae_unlearn.guardrail.weights import check_tensors, tensors_of
from sae_unlearn.sae import SparseAutoencoder


_IN_PATHS = '/\\:*?"<>|'


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
    """Put a guardrail on a model. Everything is checked before the model is touched.

    Args:
        model: a causal language model of transformers; or a `PeftModel` with guardrails, which the new one joins; or
            one with a LoRA, beside which it works. All stay active.
        source: a local folder, a Hub repository, a `GuardrailFolder`, or an `SAEGuardrailConfig` with `feature_ids`,
            `threshold` and `clamp_value`, whose rows are taken from `sae` (or the SAE that its `sae_source` names).
        adapter_name: its name on the model; default "default", or "guardrail" beside a LoRA.
        revision: branch, tag or commit of the Hub repository.
        subfolder: folder in the repository or folder.
        sae: the SAE, when `source` is a config.
        check_base: compare the model with the recorded fingerprint of the one it was fitted on. False only warns,
            for instance for a fine-tuned descendant.
        token, cache_dir, local_files_only: as in `huggingface_hub`.

    Returns:
        A `PeftModel` with the guardrail active. The model you passed is wrapped, not copied; of a compiled one the
        model inside, so compile what is returned.

    Raises:
        GuardrailError: the folder is malformed, the guardrail does not belong to this model, the name is taken, or no
            name is given and the very guardrail is on the model already. With another name or other settings the same
            weights are warned of: where both fire, the edit is made twice.
    """
    bare = bare_model(model)
    name = free_name(model, adapter_name)
    if isinstance(source, SAEGuardrailConfig):
        artefact = _from_config(copy.deepcopy(source), sae)
    elif not isinstance(source, (str, os.PathLike, GuardrailFolder)):
        raise GuardrailError(f"source={source!r:.60} is no folder, Hub id or SAEGuardrailConfig.")
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
            f"{source}: {artefact.damage}. Download or fit it again; or, if you changed it yourself, take "
            f"{' and '.join(map(repr, SEALS))} out of its config."
        )
    check_new(guard_layers(model), artefact.config, artefact.tensors, named=adapter_name is not None)
    return place_guardrail(model, artefact, name)


def detach_guardrail(model: nn.Module, adapter_name: str | None = None) -> nn.Module:
    """Take a guardrail off, or all of them; what remains computes as if it had never been there, bit for bit.

    Args:
        model: a model with guardrails.
        adapter_name: which one; None takes all off.

    Returns:
        The base model if nothing else is on it, else `model`.

    Raises:
        GuardrailError: there is no guardrail of that name.
    """
    layers = [layer for layer in guard_layers(model) if adapter_name is None or adapter_name in layer.guard_config]
    if not layers:
        raise GuardrailError(f"There is no guardrail{f' {adapter_name!r}' if adapter_name else ''} on the model.")
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
    remove_call_hooks(bare)
    whole = uncompiled(model)
    if configs:
        if isinstance(whole, PeftModel) and isinstance(whole.base_model, SAEGuardrailModel):
            _activate(whole, [name for name in active if name in configs])
        return model
    if hasattr(bare, "peft_config"):
        del bare.peft_config
    forget_loaded_adapters(bare)
    return bare if isinstance(whole, PeftModel) else model


def place_guardrail(model: nn.Module, artefact: Artefact, name: str) -> PeftModel:
    """Put a checked guardrail on a model, make it active beside what is active already, and see that it arrived.

    If any of that fails, the model is left as it was.
    """
    model, bare = uncompiled(model), bare_model(model)
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
            # PEFT warns of names that are part of its prefix, for fear of weights that get lost; ours do not
            warnings.filterwarnings("ignore", message="Adapter name .* should not be contained in the prefix")
            model.add_adapter(name, config)
        _activate(model, [*active, name])
    else:
        with warnings.catch_warnings():
            # PEFT warns that the model has adapters already: it has, and the guardrail joins their configs
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            SAEGuardrailModel(bare_model(model), config, name)
    for layer in guard_layers(model):  # PEFT makes the newest the only active one, where it does not know of the others
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
    """Undo a `_place` that did not come to its end."""
    for decoder_layer in find_decoder_layers(bare).layers:
        layer = getattr(decoder_layer, CHILD, None)
        if layer is None:
            remove_hooks(decoder_layer, SAEGuardrailLayer)  # of one that was never placed
        elif name in layer.guard_config:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                layer.delete_adapter(name)
            if not layer.guard_config:
                remove_guard(decoder_layer)
    remove_call_hooks(bare)
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
            f"A config alone needs feature_ids ({config.feature_ids}), threshold ({config.threshold}) and clamp_value "
            f"({config.clamp_value}); use `fit_guardrail` to measure them."
        )
    if sae is None:
        source = config.sae_source or {}
        if not source.get("id") or source.get("local"):
            raise GuardrailError("A config alone has no weights: pass `sae=`, or name the SAE in `sae_source`.")
        sae = SparseAutoencoder.from_pretrained(
            source["id"], subfolder=source.get("subfolder"), revision=source.get("revision")
        )
    if sae.layer not in (None, config.layer):
        raise GuardrailError(f"layer={config.layer}, but the SAE reads the output of layer {sae.layer}.")
    if config.base_model.hidden_size is None:
        config.base_model = replace(config.base_model, hidden_size=sae.d_in)
    check_threshold(config.threshold, config, None)
    if not sae.exact_in_slices:
        kind = "SAE with normalised inputs" if sae.k is None else f"topk SAE (k={sae.k})"
        raise GuardrailError(
            f"This is a {kind}, whose features a guardrail has to approximate, and that needs text: use "
            "`fit_guardrail(..., topk='threshold')`."
        )
    part = sae.slice([*config.feature_ids, *(config.gate_feature_ids or ())])
    tensors = tensors_of(part, torch.full((config.num_features,), float(config.clamp_value)))
    check_tensors(tensors, "the SAE")
    return Artefact(config, tensors, None)


def free_name(model: nn.Module, wanted: str | None) -> str:
    """The name of a guardrail that is put on a model: `wanted`, or the default one.

    Raises:
        GuardrailError: it is taken, or PEFT or a file system could not hold it.
    """
    taken = {name for layer in guard_layers(model) for name in layer.guard_config}
    taken |= set(getattr(model, "peft_config", None) or {})
    if wanted is not None and not isinstance(wanted, str):
        raise GuardrailError(f"adapter_name={wanted!r} is a {type(wanted).__name__}; give a text.")
    name = wanted or ("guardrail" if taken else "default")
    if name in taken:
        raise GuardrailError(f"There is an adapter {name!r} on the model already; choose another `adapter_name`.")
    if "." in name or SAEGuardrailModel.prefix in name:
        raise GuardrailError(f"adapter_name={name!r} must not hold a dot or {SAEGuardrailModel.prefix}.")
    if name != name.strip() or not name.isprintable() or set(name) & set(_IN_PATHS):  # it becomes a folder
        raise GuardrailError(
            f"adapter_name={name!r} would be a folder's name when it is saved; use letters, digits, '_' and '-'."
        )
    if hasattr(nn.ModuleDict, name) or hasattr(nn.ModuleDict(), name):
        raise GuardrailError(
            f"adapter_name={name!r} is what a module of torch calls a part of its own; choose another `adapter_name`."
        )
    hidden = _hidden_by(name, model)
    if hidden is not None:
        raise GuardrailError(
            f"adapter_name={name!r} stands in the path of a tensor of adapter {hidden!r}, and PEFT would leave that "
            "tensor out when it saves; choose another `adapter_name`."
        )
    return name


def _hidden_by(name: str, model: nn.Module) -> str | None:
    """The adapter beside ours of which PEFT would not save all: it drops tensors whose path holds another's name."""
    configs = getattr(model, "peft_config", None) or {}
    others = [other for other, config in configs.items() if not isinstance(config, SAEGuardrailConfig)]
    paths = [f".{key}." for key, _ in model.named_parameters()] if others else []
    return next((other for other in others for path in paths if f".{name}." in path and f".{other}." in path), None)


def _activate(model: PeftModel, names: list[str]) -> None:
    model.base_model.set_adapter(names, inference_mode=True)
    if model.active_adapter not in model.peft_config:  # PEFT reads the config of this one at every call
        model.active_adapter = next(iter(model.peft_config))


def _write(layer: SAEGuardrailLayer, name: str, tensors: dict[str, Any]) -> None:
    with torch.no_grad():
        for key, parameter in layer.guardrail(name).tensors().items():
            parameter.copy_(tensors[key])
            if not torch.equal(parameter.cpu().to(tensors[key].dtype), tensors[key]):
                raise GuardrailError(f"{key} did not arrive on the model as it was read.")
