"""The forget sets on a model, by name: what is there, which are in force, and what each does."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.guardrail.attach import bare_model
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_validation import CHOICES, check_refusal
from sae_unlearn.guardrail.errors import GuardrailError
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.runtime.refusal import message_ids


@dataclass(frozen=True)
class ForgetSet:
    """A guardrail as it is on a model.

    Attributes:
        name: its adapter name.
        active: whether it is in force.
        action: "clamp", "record" or "refuse".
        layer: 0-based decoder layer whose output it guards.
        num_features: how many features it guards.
        threshold: what its statistic is compared with.
        source: folder or Hub repository it was loaded from, None if it was fitted here or loaded by PEFT itself.
        subfolder: folder in the source.
        revision: commit of the repository.
    """

    name: str
    active: bool
    action: str
    layer: int
    num_features: int
    threshold: float | None
    source: str | None
    subfolder: str | None
    revision: str | None


def list_guardrails(model: nn.Module) -> list[ForgetSet]:
    """The guardrails on a model, in the order of their layers; empty if there is none."""
    found = []
    for layer in guard_layers(model):
        for name, config in layer.guard_config.items():
            origin = config.origin or {}
            found.append(
                ForgetSet(
                    name=name,
                    active=name in layer.active_adapters and not layer.disable_adapters,
                    action=config.action,
                    layer=config.layer,
                    num_features=config.num_features,
                    threshold=config.threshold,
                    source=origin.get("id"),
                    subfolder=origin.get("subfolder"),
                    revision=origin.get("revision"),
                )
            )
    return found


def use_guardrails(model: nn.Module, names: str | Iterable[str]) -> None:
    """Put exactly these guardrails in force, stacked where they are several; the others stay on the model, at rest.

    Each keeps its own gate, and their edits add. Other adapters, such as a LoRA, stay as they are.

    Args:
        names: a name, or several; an empty list puts all at rest.

    Raises:
        GuardrailError: there is no guardrail of that name.
    """
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    there = _configs(model)
    absent = [name for name in wanted if name not in there]
    if absent:
        raise GuardrailError(f"There is no guardrail {absent[0]!r} on the model; there are {sorted(there)}.")
    for layer in guard_layers(model):
        layer.set_adapter(wanted, inference_mode=True)
    tuner: Any = getattr(model, "base_model", None)
    if hasattr(tuner, "active_adapter") and set(getattr(model, "peft_config", {})) == set(there):
        tuner.active_adapter = wanted


def set_action(
    model: nn.Module,
    name: str,
    action: str,
    *,
    message: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Change what a guardrail does with a sequence that fired; it holds from the next forward pass on, and is saved.

    Args:
        name: of the guardrail.
        action: "clamp", "record", or "refuse".
        message: what a refusal answers; needed the first time.
        tokenizer: the model's, for the message.

    Raises:
        GuardrailError: there is no such guardrail or action, or a refusal has no message; nothing is changed.
    """
    there = _configs(model)
    if name not in there:
        raise GuardrailError(f"There is no guardrail {name!r} on the model; there are {sorted(there)}.")
    if action not in CHOICES["action"]:
        raise GuardrailError(f"action={action!r} is not one of {', '.join(map(repr, CHOICES['action']))}.")
    config = there[name]
    before = (config.action, config.refusal, config.refusal_ids)
    if message is not None:
        ids = message_ids(message, tokenizer, getattr(bare_model(model), "generation_config", None))
        config.refusal, config.refusal_ids = message, ids
    config.action = action
    try:
        check_refusal(config)
    except GuardrailError:
        config.action, config.refusal, config.refusal_ids = before
        raise


def _configs(model: nn.Module) -> dict[str, SAEGuardrailConfig]:
    return {name: config for layer in guard_layers(model) for name, config in layer.guard_config.items()}
