"""Patches of PEFT 0.20 for a behavior of 0.21 (read in 0.20.0 and 0.21.2).

From 0.21 on a tuner class says which tensors are an adapter's, and which may be loaded (`_get_adapter_state_dict`,
`_remap_adapter_state_dict_for_load`). Before, PEFT loses tensors whose path holds another adapter's name, and loads
into a name that is taken. There both questions are put in the two functions by which PEFT and its users save and load,
wherever a module has imported them; adapters of other methods are left to PEFT. With peft >= 0.21 as the floor
this module goes.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from sae_unlearn.guardrail.model import SAEGuardrailModel
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.weights import PARTS


ASKS = hasattr(BaseTuner, "_get_adapter_state_dict")
"""True if this PEFT asks the tuner itself."""


def do_as_later_peft() -> None:
    """Make PEFT 0.20 ask tuners about guardrails. Safe to call again."""
    if ASKS or hasattr(get_peft_model_state_dict, "__wrapped__"):
        return
    _replace(get_peft_model_state_dict, _whole(get_peft_model_state_dict))
    _replace(set_peft_model_state_dict, _checked(set_peft_model_state_dict))


def _replace(function: Callable[..., Any], by: Callable[..., Any]) -> None:
    """Replace a function of PEFT in every loaded module that has it under its name."""
    name = function.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is function:
            setattr(module, name, by)


def _checked(load: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(load)
    def checked(
        model: Any, peft_model_state_dict: dict[str, Tensor], adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        config = model.peft_config[adapter_name]
        if config.peft_type == PEFT_TYPE:
            SAEGuardrailModel.check_free(model, config, adapter_name)
            given = peft_model_state_dict.items()
            parts = {key: t for key, path in PARTS.items() for name, t in given if name.endswith(f".{path}")}
            SAEGuardrailModel.warn_if_known(model, config, adapter_name, parts)
        return load(model, peft_model_state_dict, adapter_name, *args, **kwargs)

    return checked


def _whole(save: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    @wraps(save)
    def whole(
        model: Any,
        state_dict: dict[str, Tensor] | None = None,
        adapter_name: str = "default",
        unwrap_compiled: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        model = getattr(model, "_orig_mod", model) if unwrap_compiled else model
        config = model.peft_config[adapter_name]
        if config.peft_type != PEFT_TYPE:
            return save(model, state_dict, adapter_name, unwrap_compiled, *args, **kwargs)
        given = dict(model.state_dict()) if state_dict is None else state_dict
        own = SAEGuardrailModel._get_adapter_state_dict(model, config, adapter_name, given, [])
        return {_without(adapter_name, key): tensor for key, tensor in own.items()}

    return whole


def _without(adapter_name: str, key: str) -> str:
    head, _, leaf = key.rpartition(".")
    return f"{head.removesuffix(f'.{adapter_name}')}.{leaf}"
