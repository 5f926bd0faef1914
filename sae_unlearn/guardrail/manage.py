"""The guardrails on a model by name: list and enable them, set their action, and get the model's status."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import bare_model
from sae_unlearn.backbone.private_api import forward_hook_owners
from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_validation import CHOICES, check_refusal
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, ModelHooks, hooks_of, is_hooked
from sae_unlearn.guardrail.runtime.refusal import message_ids


@dataclass(frozen=True)
class AttachedGuardrail:
    """A guardrail on a model, as `list_guardrails` returns it.

    Attributes:
        name (`str`): Its adapter name.
        active (`bool`): True if it is enabled.
        action (`str`): "clamp", "record" or "refuse".
        layer (`int`): The 0-based decoder layer whose output it guards.
        num_features (`int`): The number of guarded features.
        threshold (`float`, *optional*): The gate fires if its statistic exceeds it.
        source (`str`, *optional*): The folder or Hub repository it was loaded from. None if it was fitted in this
            process or loaded by PEFT itself.
        subfolder (`str`, *optional*): The folder in `source`.
        revision (`str`, *optional*): The commit of the repository.
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


def list_guardrails(model: nn.Module) -> list[AttachedGuardrail]:
    """Return the guardrails on a model in the order of their layers; an empty list if there is none.

    Args:
        model (`nn.Module`): Any model.

    Raises:
        GuardrailError: If `model` is not a module.
    """
    found = []
    for layer in guard_layers(model):
        for name, config in layer.guard_config.items():
            origin = config.origin or {}
            found.append(
                AttachedGuardrail(
                    name=name,
                    active=name in layer.in_force,
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


def enable_guardrails(model: nn.Module, names: str | Iterable[str]) -> None:
    """Enable exactly these guardrails and disable all others, which stay on the model.

    Enabled guardrails stack: each keeps its own gate, and their edits add. Other adapters, such as a LoRA, are not
    changed.

    Args:
        model (`nn.Module`): A model with guardrails.
        names (`str` or iterable of `str`): Adapter names. An empty list disables all guardrails.

    Raises:
        GuardrailError: If there is no guardrail of one of these names. Nothing is changed then.
    """
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    there = _configs(model)
    absent = [name for name in wanted if name not in there]
    if absent:
        raise GuardrailError(f"names={absent[0]!r}: expected some of {sorted(there)}. Pass names of guardrails on it.")
    for layer in guard_layers(model):
        layer.activate(wanted)
    tuner: Any = getattr(model, "base_model", None)
    if hasattr(tuner, "active_adapter") and set(getattr(model, "peft_config", {})) == set(there):
        tuner.active_adapter = wanted


def set_action(
    model: nn.Module,
    name: str | None = None,
    action: str | None = None,
    *,
    message: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Change what a guardrail does with a sequence that fired; it holds from the next forward pass on, and is saved.

    `set_action(model, "biology", "record")`, or `set_action(model, "record")` on a model with one guardrail.

    Args:
        model (`nn.Module`): A model with guardrails.
        name (`str`, *optional*): The guardrail's adapter name. Not needed where there is one.
        action (`str`): "clamp", "record", or "refuse".
        message (`str`, *optional*): What a refusal answers; needed the first time.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's, for the message.

    Raises:
        GuardrailError: If there is no such guardrail or action, if several are there and none is named, or if a refusal
            has no message. Nothing is changed then.
    """
    if action is None:
        name, action = None, name
    there = _configs(model)
    if name is None and len(there) == 1:
        (name,) = there
    if name is None or name not in there:
        raise GuardrailError(f"name={name!r}: expected one of the model's guardrails, {sorted(there)}. Pass its name.")
    if action not in CHOICES["action"]:
        raise GuardrailError(f"action={action!r} is not one of {', '.join(map(repr, CHOICES['action']))}.")
    config = there[name]
    before = (config.action, config.refusal, config.refusal_ids, config.refusal_compared)
    if message is not None:
        ids = message_ids(message, tokenizer, getattr(bare_model(model), "generation_config", None))
        config.refusal, config.refusal_ids = message, ids
        config.refusal_compared = True  # type: ignore[misc]  # a ClassVar, so that it is not a field
    config.action = action
    try:
        check_refusal(config)
    except GuardrailError:
        config.action, config.refusal, config.refusal_ids, compared = before
        config.refusal_compared = compared  # type: ignore[misc]
        raise


def _configs(model: nn.Module) -> dict[str, SAEGuardrailConfig]:
    return {name: config for layer in guard_layers(model) for name, config in layer.guard_config.items()}


NO_MATRICES = "the artefact records no matrices of its base model, so a fine-tuned descendant passes for it"

State = Literal["guarding", "recording", "off", "raising", "missing"]


@dataclass(frozen=True)
class GuardrailState:
    """What one guardrail does when the model is called.

    Attributes:
        adapter: its name.
        layer: the decoder layer after which it works; None if it is nowhere on the model.
        state: "guarding"; "recording" (`action="record"`: it reports and edits nothing); "off" (disabled, or not among
            the active adapters); "raising" (the call is stopped); "missing" (the model names it in `peft_config`, but
            no layer carries it, or nothing calls it).
        reason: a sentence; while guarding empty, but where the base model could not be told from a descendant.
    """

    adapter: str
    layer: int | None
    state: State
    reason: str = ""


@dataclass(frozen=True)
class GuardrailStatus:
    """The answer of `guardrail_status`.

    Attributes:
        guardrails: one entry per guardrail.
    """

    guardrails: tuple[GuardrailState, ...]

    @property
    def verdict(self) -> Literal["guarded", "raises", "unguarded"]:
        """What becomes of text: "raises" if the call is stopped, "guarded" if every guardrail acts, else "unguarded"
        (one of them would let its topic pass, or there is none)."""
        states = {guardrail.state for guardrail in self.guardrails}
        if "raising" in states:
            return "raises"
        return "guarded" if states == {"guarding"} else "unguarded"

    def __str__(self) -> str:
        lines = [
            f"{guard.adapter} (layer {guard.layer}): {guard.state}{guard.reason and ': ' + guard.reason}"
            for guard in self.guardrails
        ]
        return "\n".join([self.verdict, *lines])


def guardrail_status(model: nn.Module) -> GuardrailStatus:
    """Is text that this model is given now guarded, does the call raise, or does the text pass?

    Nothing is run but the look at the weights that a first call takes, too. It sees through `PeftModel`,
    `torch.compile`, `DistributedDataParallel` and FSDP.

    Args:
        model: any model, with or without guardrails.

    Raises:
        GuardrailError: `model` is no module.

    Example:

    ```python
    status = guardrail_status(model)
    assert status.verdict == "guarded", str(status)
    ```
    """
    layers = guard_layers(model)
    backbones = [(module, hooks_of(module, BackboneHooks)) for module in model.modules()]
    known: dict[int, str] = {}
    for backbone, hooks in backbones:
        if hooks is not None:
            missing = hooks.missing(backbone)
            net = "misplaced" if is_hooked(backbone, hooks) else "lost"  # what raises at the end of a pass
            known |= {id(guard): net if index in missing else "placed" for index, guard in hooks.guards.items()}
    torn = any(_is_torn(module) for module in model.modules())
    found = [_state(layer, name, known.get(id(layer)), torn) for layer in layers for name in layer.guard_config]
    lost = [
        _state(guard, name, known[id(guard)], torn)
        for _, hooks in backbones
        if hooks is not None
        for guard in hooks.guards.values()
        if isinstance(guard, SAEGuardrailLayer) and not any(guard is layer for layer in layers)
        for name in guard.guard_config
    ]
    names = {guard.adapter for guard in (*found, *lost)}
    absent = [
        GuardrailState(name, None, "missing", "it is in peft_config, and no layer carries it; attach it again")
        for name in _configured(model)
        if name not in names
    ]
    return GuardrailStatus((*found, *lost, *absent))


def _state(layer: SAEGuardrailLayer, name: str, place: str | None, torn: bool) -> GuardrailState:
    config = layer.guard_config[name]
    if name not in layer.in_force:
        reason = "adapters are disabled" if layer.off else "it is not among the active adapters"
        return GuardrailState(name, config.layer, "off", reason)
    if place == "lost" or (place is None and not layer.in_place(layer.home)):
        return GuardrailState(name, config.layer, "missing", "all its hooks were taken off; attach it again")
    if place == "misplaced":
        reason = "its layer was replaced or moved, or the hooks were taken off; attach it again"
        return GuardrailState(name, config.layer, "raising", reason)
    if place is None or torn:
        return GuardrailState(name, config.layer, "raising", "the hooks on the model were taken off; attach it again")
    try:
        layer.check_ready(name)
    except GuardrailNotReady as error:
        return GuardrailState(name, config.layer, "raising", str(error))
    if config.action == "record":
        return GuardrailState(name, config.layer, "recording", 'action="record": it reports, and edits nothing')
    fingerprint = config.base_model.fingerprint
    weak = isinstance(fingerprint, dict) and not fingerprint.get("matrices")
    return GuardrailState(name, config.layer, "guarding", NO_MATRICES if weak else "")


def _is_torn(module: nn.Module) -> bool:
    """Whether of the hooks of a model with its head, which work in pairs, one is left alone."""
    before = hooks_of(module, ModelHooks)
    if before is None:
        return any(isinstance(owner, ModelHooks) for owner in forward_hook_owners(module))
    return not is_hooked(module, before)


def _configured(model: nn.Module) -> list[str]:
    """Names of the guardrails in `peft_config`, of the model or of what it wraps."""
    found = (getattr(module, "peft_config", None) for module in model.modules())
    configs = next((configs for configs in found if isinstance(configs, dict)), {})
    return [name for name, config in configs.items() if config.peft_type == PEFT_TYPE]
