"""Private names of torch, transformers, PEFT and accelerate in use, each with its versions.

Functions read or set them. Names that are overridden in a subclass, or that a decoded token reads where it runs, are
listed in `OVERRIDDEN` and `READ_IN_PLACE`. A test looks each of them up in the installed versions, and finds accesses
that are not listed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


OVERRIDDEN: dict[str, tuple[str, ...]] = {
    # torch 2.8 to 2.13
    "torch.nn.Module": ("_apply",),
    # peft 0.20.0 and 0.21.2; 0.20 lacks the two about state dicts, see `guardrail.peft_020`
    "peft.tuners.tuners_utils.BaseTuner": (
        "_check_merge_allowed",
        "_check_target_module_exists",
        "_create_and_replace",
        "_enable_adapter_layers",
        "_get_adapter_state_dict",
        "_mark_only_adapters_as_trainable",
        "_pre_injection_hook",
        "_prepare_adapter_config",
        "_remap_adapter_state_dict_for_load",
        "_replace_module",
    ),
    "peft.PeftModel": ("_enable_peft_forward_hooks",),  # which asks its tuner for it
    "peft.tuners.tuners_utils.BaseTunerLayer": ("_move_adapter_to_device_of_base_layer",),
    # transformers 5.16 to 5.24
    "transformers.Trainer": ("_get_num_items_in_batch", "_push_from_checkpoint", "_save"),
}
"""By class, the private methods that a subclass of ours overrides."""

READ_IN_PLACE: dict[str, tuple[str, ...]] = {
    # torch 2.8 to 2.13: a decoded token reads them, and a function call costs more than the look-up
    "torch.nn.Module": ("_call_impl", "_modules", "_parameters"),
    "torch.Tensor": ("_version",),
    "torch._C": ("_get_tracing_state",),
    # transformers 5.16 to 5.24
    "transformers.PreTrainedConfig": ("_name_or_path",),
    # peft 0.20.0 and 0.21.2
    "peft.tuners.tuners_utils.BaseTunerLayer": (
        "_active_adapter",
        "_all_available_adapter_names",
        "_disable_adapters",
    ),
    # transformers 5.24: the loaders of evaluation sets, which it returns for any other set
    "transformers.Trainer": ("_eval_dataloaders",),
}
"""By class, the private names that are read or set where they are used."""


def forward_hook_owners(module: nn.Module) -> list[Any]:
    """Return the objects whose methods are forward hooks of `module`, in their order (torch 2.8 to 2.13)."""
    return [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]


def pre_hook_owners(module: nn.Module) -> list[Any]:
    """Return the objects whose methods are forward pre-hooks of `module`, in order (torch 2.8 to 2.13)."""
    return [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]


def remove_hooks(module: nn.Module, kind: type) -> None:
    """Remove every hook of `module` that is a method of an object of class `kind` (torch 2.8 to 2.13).

    The hooks are searched and not kept as handles, so this also works on deep copies and unpickled models.
    """
    for hooks, extras in (
        (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
        (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
    ):
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), kind)]:
            del hooks[key]
            for extra in extras:
                extra.pop(key, None)


def compiled_module(module: nn.Module) -> nn.Module:
    """Return the module inside of `torch.compile(module)`, any other as it is (torch 2.8 to 2.13)."""
    found: nn.Module = getattr(module, "_orig_mod", module)
    return found


def offload_device(module: nn.Module) -> Any:
    """Return the device on which accelerate runs an offloaded module, or None (accelerate 1.10)."""
    return getattr(getattr(module, "_hf_hook", None), "execution_device", None)


def checkpoint_function(module: nn.Module) -> Any:
    """Return transformers' function for gradient checkpoints, or None (transformers 5.16 to 5.24)."""
    return getattr(module, "_gradient_checkpointing_func", None)


def loaded_from(config: Any) -> str:
    """Return the Hub id or path of a transformers config; "" if none (transformers 5.16 to 5.24)."""
    return getattr(config, "_name_or_path", None) or ""


def prompt_length(request: Any) -> int:
    """Return the tokens in the prompt of a request of continuous batching (transformers 5.16 to 5.24).

    A request that is computed again, since the cache was full, has the tokens that it generated among its initial ones.
    """
    return int(request._true_initial_tokens or len(request.initial_tokens))


def has_loaded_adapters(model: nn.Module) -> bool:
    """Return True if transformers loaded adapters itself; it then reads their configs (5.16 to 5.24)."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def forget_loaded_adapters(model: Any) -> None:
    """Mark a model as without adapters, so that their configs are not read (transformers 5.16 to 5.24)."""
    if has_loaded_adapters(model):
        model._hf_peft_config_loaded = False


@contextmanager
def unsaved(model: Any, keys: Iterable[str]) -> Iterator[None]:
    """Leave `keys` out of the files of `save_pretrained` in the block (transformers 5.16 to 5.24)."""
    had, ignored = "_keys_to_ignore_on_save" in model.__dict__, model._keys_to_ignore_on_save
    model._keys_to_ignore_on_save = [*(ignored or ()), *keys]
    try:
        yield
    finally:
        if had:
            model._keys_to_ignore_on_save = ignored
        else:
            del model._keys_to_ignore_on_save
