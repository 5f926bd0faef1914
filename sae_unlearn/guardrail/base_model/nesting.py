"""An adapter of another method that is put over a model of guardrails.

PEFT holds one method per `PeftModel`. A second one over it is nested: the names of its weights no longer match those
of its file, so nothing is loaded, and PEFT only warns. The order is therefore the other way round: the other adapter
first, then the guardrail, which joins it.
"""

from collections.abc import Iterable
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.tuner_layer import GuardrailTunerLayer, other_adapter_modules


def check_joins(adapter_name: str, config: PeftConfig) -> None:
    """Raise unless an adapter can be added to a `PeftModel` of guardrails.

    Raises:
        GuardrailError: If it is of another method.
    """
    if not isinstance(config, SAEGuardrailConfig):
        raise _wrong_order(adapter_name, config)


def refuse_nested(model: nn.Module, configs: dict[str, PeftConfig]) -> None:
    """Remove an adapter of another method that PEFT put over a model of guardrails, and raise.

    Args:
        model (Module): The transformers model.
        configs (dict[str, PeftConfig]): Of all adapters that PEFT now knows on it; those of the other method are
            removed from it.

    Raises:
        GuardrailError: If PEFT did so. The error names the order that works.
    """
    nested = {name: config for name, config in configs.items() if not isinstance(config, SAEGuardrailConfig)}
    if not nested:
        return
    _take_off(model, nested)
    for name in nested:
        del configs[name]
    for layer in model.modules():  # of the same name as one of ours
        if isinstance(layer, GuardrailTunerLayer):
            configs.update(layer.guard_config)
    raise _wrong_order(*next(iter(nested.items())))


def _take_off(model: nn.Module, names: Iterable[str]) -> None:
    for name, module in list(other_adapter_modules(model)):
        if isinstance(module, BaseTunerLayer) and set(module._all_available_adapter_names()) <= set(names):
            original = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            original = module.original_module
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, original)


def _wrong_order(name: str, config: Any) -> GuardrailError:
    kind = getattr(config.peft_type, "value", config.peft_type)
    return GuardrailError(
        f"adapter {name!r}: expected a guardrail, got a {kind}, which PEFT cannot put over one. Load it on the base "
        "model first: `attach_guardrail(PeftModel.from_pretrained(base, ...), ...)`."
    )
