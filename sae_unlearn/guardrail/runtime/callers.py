"""Modules whose calls write a refusal: the model, and tuners of PEFT that call its `forward`.

In a `PeftModel`'s forward pass most tuners of PEFT 0.21 call the model. AdaLoRA, AdaptionPrompt and every tuner of 0.20
call its `forward`, past the hooks on the model. So these tuners get the same hooks. In `generate` they are not called.
"""

from collections.abc import Iterator
from typing import Any

from peft import PeftMixedModel, PeftModel
from torch import nn
from transformers import PreTrainedModel

from sae_unlearn.backbone.private_api import pre_hook_owners, remove_hooks
from sae_unlearn.guardrail.runtime.hooks import UNSAID, BackboneHooks, ModelHooks, hooks_of, is_hooked


def hook_tuners(model: nn.Module, bare: nn.Module) -> None:
    """Put the hooks of a guarded model on the tuners that call its `forward`.

    Args:
        model (nn.Module): The model with the tuners.
        bare (nn.Module): The transformers model, with hooks.
    """
    hooks = hooks_of(bare, ModelHooks)
    for tuner in _tuners_past_hooks(model):
        if hooks is not None and not _has_both(tuner, hooks):
            hooks.install(tuner)


def unhook_tuners(model: nn.Module) -> None:
    """Undo `hook_tuners`."""
    for tuner in _tuners_past_hooks(model):
        remove_hooks(tuner, ModelHooks)


def why_unsaid(model: nn.Module, hooks: BackboneHooks) -> str:
    """Return why a call of `model` could not write a refusal, or "".

    Args:
        model (nn.Module): Any module.
        hooks (BackboneHooks): Hooks of a backbone in it.
    """
    caller = hooks.caller
    if caller is None or not caller.has_text or not any(_has_both(module, caller) for module in model.modules()):
        return UNSAID
    return UNSAID if any(not _has_both(tuner, caller) for tuner in _tuners_past_hooks(model)) else ""


def _has_both(module: nn.Module, hooks: ModelHooks) -> bool:
    """Return True if both hooks of `hooks` are on `module`."""
    return is_hooked(module, hooks) and any(owner is hooks for owner in pre_hook_owners(module))


def _tuners_past_hooks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the tuners in `model` whose forward pass calls the `forward` of the model inside.

    AdaptionPrompt's own `forward` is the model's. The code of the others names it.
    """
    for module in model.modules():
        tuner: Any = module.base_model if isinstance(module, (PeftModel, PeftMixedModel)) else None
        if tuner is None or isinstance(tuner, PreTrainedModel):  # prompt learning has no tuner
            continue
        code = getattr(tuner.forward, "__code__", None)
        if getattr(tuner.forward, "__self__", tuner) is not tuner or (code is not None and "forward" in code.co_names):
            yield tuner
