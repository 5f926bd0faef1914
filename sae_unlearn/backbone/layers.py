"""Parts of a transformers model: bare model, decoder layers, embeddings, config and devices."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sae_unlearn.backbone.private_api import compiled_module, offload_device
from sae_unlearn.errors import GuardrailError, GuardrailUnsupported, UnlearnError


def bare_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside of `model`.

    Raises:
        GuardrailError: If it is a `PeftModel` that a guardrail cannot join.
    """
    check_module(model)
    model, inner = uncompiled(model), base_model_of(model)
    if not isinstance(model, PeftModel):
        return inner
    active = model.peft_config.get(model.active_adapter)
    if (active is not None and active.is_prompt_learning) or isinstance(inner, PeftModel):
        raise GuardrailError(
            f"A guardrail cannot join {type(active).__name__}: prompt learning and nested PeftModels "
            "change the model's input. Attach it to the base model."
        )
    return inner


_USUAL = ("layers", "layer", "h", "blocks")  # names of the list in transformers' models


class DecoderLayers(NamedTuple):
    """The list of decoder layers of a model.

    Attributes:
        backbone (Module): The module that owns the list and runs it.
        name (str): Full name of the list in the model, such as `model.layers`.
        layers (ModuleList): The layers.
    """

    backbone: nn.Module
    name: str
    layers: nn.ModuleList


def find_decoder_layers(model: nn.Module) -> DecoderLayers:
    """Return the list of `config.num_hidden_layers` layers of any causal language model of transformers.

    The search covers the model's decoder, then its base model, then the whole model: transformers' `get_decoder()`
    reads attributes by name, and in ModernBERT's decoder `decoder` is the head.

    Args:
        model (nn.Module): The bare transformers model, not a `PeftModel` around it.

    Raises:
        UnlearnError: If the model is an encoder-decoder, has no number of layers, or not exactly one such list.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise UnlearnError(f"model: expected a transformers model, got {type(model).__name__} without a `config`.")
    if getattr(config, "is_encoder_decoder", False):
        raise UnlearnError(f"model: expected a decoder-only model, got the encoder-decoder {type(model).__name__}.")
    num_layers = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        raise UnlearnError(f"num_hidden_layers={num_layers!r}: expected the number of layers in the model's config.")
    for decoder in _decoders(model):
        place = _layer_list(model, decoder, num_layers)
        if place is not None:
            return place
    raise UnlearnError(
        f"{type(model).__name__} has no list of {num_layers} decoder layers. Open an issue with the model's name."
    )


def _decoders(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a model that may hold its decoder layers, the likeliest first."""
    with suppress(AttributeError, NotImplementedError):  # a model's own code may not have a decoder
        yield cast(Any, model).get_decoder()
    base = getattr(model, "base_model", None)
    if isinstance(base, nn.Module) and base is not model:
        yield base
    yield model


def _layer_list(model: nn.Module, decoder: nn.Module | None, num_layers: int) -> DecoderLayers | None:
    """Return the list of `num_layers` decoder layers in `decoder`, a part of `model`; None if it has none.

    Raises:
        UnlearnError: If several lists may be it.
    """
    start = next((name for name, module in model.named_modules() if module is decoder), None)
    if start is None or decoder is None:
        return None
    found = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not found:
        return None
    inner = _list_of_layers(decoder, found)
    name = f"{start}.{inner}" if start else inner
    layers = cast(nn.ModuleList, model.get_submodule(name))
    return DecoderLayers(model.get_submodule(name.rpartition(".")[0]), name, layers)


def _list_of_layers(decoder: nn.Module, names: list[str]) -> str:
    """Return the name of the list of whole layers, among lists of that length.

    A model may keep the parts of its layers in one list each (XLM: attentions, norms, MLPs). It then has no module
    whose output is the residual stream.

    Raises:
        UnlearnError: If several lists may be it.
    """
    depth = min(name.count(".") for name in names)
    lists = {name: cast(nn.ModuleList, decoder.get_submodule(name)) for name in names if name.count(".") == depth}
    lists = {name: parts for name, parts in lists.items() if any(True for _ in parts.parameters())} or lists
    if len(lists) > 1:
        whole = [name for name, parts in lists.items() if isinstance(parts[0], GradientCheckpointingLayer)]
        if len(whole) > 1:  # Idefics has as many cross-attention layers
            whole = [name for name in whole if name.rpartition(".")[2] in _USUAL]
        if len(whole) != 1:
            raise UnlearnError(
                f"{type(decoder).__name__}: expected one list of decoder layers, got {', '.join(lists)}. "
                "Use a model whose layers are modules of their own."
            )
        return whole[0]
    return next(iter(lists))


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module inside of `torch.compile(module)`; any other module as it is."""
    return compiled_module(model)


def base_model_of(model: nn.Module) -> nn.Module:
    """Return the transformers model inside of a `PeftModel` or a compiled model; any other as it is."""
    model = uncompiled(model)
    if not isinstance(model, PeftModel):
        return model
    if model.active_adapter not in model.peft_config:  # deleted: `get_base_model` raises a KeyError then (PEFT 0.21)
        return uncompiled(model.base_model.model)
    return uncompiled(model.get_base_model())


def check_module(model: nn.Module) -> None:
    """Raise unless `model` is a module.

    Raises:
        UnlearnError: If it is not.
    """
    if not isinstance(model, nn.Module):
        raise UnlearnError(f"model={model!r:.60}: expected a transformers model, got {type(model).__name__}.")


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device on which accelerate runs a module with offloaded weights; None without offloading."""
    for part in module.modules():
        device = offload_device(part)
        if device is not None:
            return torch.device(device)
    return None


def input_device(model: nn.Module) -> torch.device:
    """Return the device of a model's token ids, also with embeddings that accelerate offloads."""
    embeddings = input_embeddings(model)
    if not embeddings.weight.is_meta:
        return embeddings.weight.device
    return execution_device(embeddings) or cast(torch.device, model.device)


def text_config(model: nn.Module) -> Any:
    """Return the config of the text decoder, a part of the config in multimodal models."""
    return cast(Any, model).config.get_text_config(decoder=True)


def max_positions(model: nn.Module) -> int | None:
    """Return `max_position_embeddings` of the text decoder's config; None if it has none."""
    named = getattr(text_config(model), "max_position_embeddings", None)
    return named if isinstance(named, int) else None


def input_embeddings(model: nn.Module) -> nn.Embedding:
    """Return the module that turns token ids into vectors."""
    return cast(nn.Embedding, cast(Any, model).get_input_embeddings())


def output_embeddings(model: nn.Module) -> nn.Linear | None:
    """Return the head that turns vectors into logits; None for a model without one."""
    return cast("nn.Linear | None", cast(Any, model).get_output_embeddings())


def can_generate(model: nn.Module) -> bool:
    """Return True if transformers can generate text with a model, from its logits of next tokens."""
    asked = getattr(model, "can_generate", None)
    return callable(asked) and bool(asked())


def residual_of(decoder_layer: nn.Module, output: Any) -> Tensor:
    """Return the residual stream `[batch, tokens, width]` in the output of a decoder layer.

    Raises:
        GuardrailUnsupported: If the output has another form.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if isinstance(hidden, Tensor) and hidden.ndim == 3:
        return hidden
    found = f"shape {tuple(hidden.shape)}" if isinstance(hidden, Tensor) else f"a {type(hidden).__name__}"
    raise GuardrailUnsupported(
        f"{type(decoder_layer).__name__} returns {found}: expected a residual stream [batch, tokens, width]. Use a "
        "model whose layers return it."
    )
