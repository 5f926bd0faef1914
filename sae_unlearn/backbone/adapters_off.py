"""A base model without its adapters: disabled adapters, and base parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


@contextmanager
def guards_off(model: nn.Module) -> Iterator[None]:
    """Bypass the guardrails of `model` inside the block. Other adapters are not changed.

    PEFT's switch does not disable a guardrail on a model with a LoRA, so its layer has a switch of its own, `bypass`.
    """
    guards: list[Any] = [part for part in model.modules() if is_adapter_module(part) and hasattr(part, "bypass")]
    guards = [guard for guard in guards if not guard.off]
    for guard in guards:
        guard.bypass(True)
    try:
        yield
    finally:
        for guard in guards:
            guard.bypass(False)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disable every adapter of `model` in the block, guardrails too, and restore each one's state.

    `PeftModel.disable_adapter` is not used: on leaving, it makes the active adapters trainable, parameters that were
    frozen included, and enables adapters that were disabled (peft 0.21).

    Args:
        model (nn.Module): A model with PEFT adapters, wrapped by a `PeftModel` or not.
    """
    with guards_off(model), _others_off(model):
        yield


@contextmanager
def _others_off(model: nn.Module) -> Iterator[None]:
    if isinstance(model, PeftModel) and not _on_modules(model):
        with model.disable_adapter():
            yield
        return
    were = [(part, part.disable_adapters) for part in model.modules() if is_adapter_module(part)]
    try:
        for part, _ in were:
            part._disable_adapters = True
        yield
    finally:
        for part, disabled in were:
            part._disable_adapters = disabled


def _on_modules(model: PeftModel) -> bool:
    """Return True if the active adapter acts on modules, not on the model's inputs (prompt learning)."""
    configs = [model.peft_config[name] for name in model.active_adapters]
    return not any(config.is_prompt_learning or config.is_adaption_prompt for config in configs)


def is_adapter_module(module: nn.Module) -> TypeGuard[BaseTunerLayer | AuxiliaryTrainingWrapper]:
    """Return True if the module has PEFT adapters: a tuner layer, or a trained copy of a module."""
    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def base_parameters(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of everything in `model` that is not part of an adapter.

    Args:
        model (nn.Module): The transformers model, not the `PeftModel` around it.
        prefix (str, *optional*, defaults to ""): Prefix of each name.
    """
    if isinstance(model, BaseTunerLayer):
        wrapped = model._modules.get("base_layer")  # a guardrail wraps nothing: it is a child of its decoder layer
        if wrapped is not None:
            yield from base_parameters(wrapped, prefix)
    elif isinstance(model, AuxiliaryTrainingWrapper):
        yield from base_parameters(model.original_module, prefix)
    else:
        for name, parameter in model.named_parameters(recurse=False):
            yield prefix + name, parameter
        for name, child in model.named_children():
            yield from base_parameters(child, f"{prefix}{name}.")
