"""Patches of PEFT 0.20 for two behaviors of 0.21 (read in 0.20.0 and 0.21.2).

In a `PeftModel`'s forward pass 0.21 calls the model, and 0.20 the model's `forward`, past its hooks: a refusal would
not be written. There each tuner calls the model, also a LoRA's that a guardrail is added to.

From 0.21 on a tuner class says which tensors are an adapter's, and which may be loaded (`_get_adapter_state_dict`,
`_remap_adapter_state_dict_for_load`). Before, PEFT loses tensors whose path holds another adapter's name, and loads
into a name that is taken. There both questions are put where `PeftModel` saves and loads; adapters of other methods are
left to PEFT. With peft >= 0.21 as the floor this module goes.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from peft import peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from sae_unlearn.guardrail.model import SAEGuardrailModel
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.weights import PARTS


ASKS = hasattr(BaseTuner, "_get_adapter_state_dict")
"""True if this PEFT asks the tuner itself."""


def do_as_later_peft() -> None:
    """Make PEFT 0.20 call models with their hooks and ask tuners about guardrails. Safe to call again."""
    if ASKS or hasattr(peft_model.set_peft_model_state_dict, "__wrapped__"):
        return
    BaseTuner.forward = _call_model
    peft_model.set_peft_model_state_dict = _checked(peft_model.set_peft_model_state_dict)
    peft_model.get_peft_model_state_dict = _whole(peft_model.get_peft_model_state_dict)


def _call_model(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.model(*args, **kwargs)


def _checked(load: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(load)
    def checked(model: Any, state: dict[str, Tensor], adapter_name: str = "default", *args: Any, **kwargs: Any) -> Any:
        config = model.peft_config[adapter_name]
        if config.peft_type == PEFT_TYPE:
            SAEGuardrailModel.check_free(model, config, adapter_name)
            parts = {key: t for key, path in PARTS.items() for name, t in state.items() if name.endswith(f".{path}")}
            SAEGuardrailModel.warn_if_known(model, config, adapter_name, parts)
        return load(model, state, adapter_name, *args, **kwargs)

    return checked


def _whole(save: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    @wraps(save)
    def whole(
        model: Any, state_dict: dict[str, Tensor] | None = None, adapter_name: str = "default", **kwargs: Any
    ) -> dict[str, Tensor]:
        config = model.peft_config[adapter_name]
        if config.peft_type != PEFT_TYPE:
            return save(model, state_dict=state_dict, adapter_name=adapter_name, **kwargs)
        given = dict(model.state_dict()) if state_dict is None else state_dict
        own = SAEGuardrailModel._get_adapter_state_dict(model, config, adapter_name, given, [])
        return {_without(adapter_name, key): tensor for key, tensor in own.items()}

    return whole


def _without(adapter_name: str, key: str) -> str:
    head, _, leaf = key.rpartition(".")
    return f"{head.removesuffix(f'.{adapter_name}')}.{leaf}"
