"""Names of guardrails on a model."""

from torch import nn

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.model import SAEGuardrailModel, guard_layers


_IN_PATHS = '/\\:*?"<>|'


def free_name(model: nn.Module, wanted: str | None) -> str:
    """Return the name of a new guardrail: `wanted`, or the default one.

    Raises:
        GuardrailError: If it is taken, or not valid for PEFT or a file system.
    """
    taken = {name for layer in guard_layers(model) for name in layer.guard_config}
    taken |= set(getattr(model, "peft_config", None) or {})
    if wanted is not None and not isinstance(wanted, str):
        raise GuardrailError(f"adapter_name={wanted!r}: expected a text, got {type(wanted).__name__}.")
    name = wanted or ("guardrail" if taken else "default")
    if name in taken:
        raise GuardrailError(f"adapter_name={name!r}: the model has an adapter of this name. Pass another name.")
    if "." in name or SAEGuardrailModel.prefix in name:
        raise GuardrailError(f"adapter_name={name!r}: expected a name without a dot and {SAEGuardrailModel.prefix}.")
    if name != name.strip() or not name.isprintable() or set(name) & set(_IN_PATHS):  # it becomes a folder
        raise GuardrailError(
            f"adapter_name={name!r}: expected a valid name of a folder. Use letters, digits, '_' and '-'."
        )
    if hasattr(nn.ModuleDict, name) or hasattr(nn.ModuleDict(), name):
        raise GuardrailError(f"adapter_name={name!r}: torch uses this name in its modules. Pass another name.")
    hidden = _hidden_by(name, model)
    if hidden is not None:
        raise GuardrailError(
            f"adapter_name={name!r} is part of the path of a tensor of adapter {hidden!r}, which PEFT would not save. "
            "Pass another name."
        )
    return name


def _hidden_by(name: str, model: nn.Module) -> str | None:
    """Return another adapter that PEFT would not save whole: it drops tensors with `name` in their path."""
    configs = getattr(model, "peft_config", None) or {}
    others = [other for other, config in configs.items() if not isinstance(config, SAEGuardrailConfig)]
    paths = [f".{key}." for key, _ in model.named_parameters()] if others else []
    return next((other for other in others for path in paths if f".{name}." in path and f".{other}." in path), None)
