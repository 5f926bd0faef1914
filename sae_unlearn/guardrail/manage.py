"""The guardrails on a model by name: list, enable, and get the model's status."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sae_unlearn.backbone.private_api import forward_hook_owners
from sae_unlearn.checks import check_choice
from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.runtime.callers import why_unsaid
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, ModelHooks, hooks_of, is_hooked


@dataclass(frozen=True)
class AttachedGuardrail:
    """A guardrail on a model, as `list_guardrails` returns it.

    Attributes:
        name (str): Its adapter name.
        active (bool): True if it is enabled.
        action (str): "clamp", "record" or "refuse".
        layer (int): The 0-based decoder layer whose output it guards.
        num_features (int): The number of guarded features.
        threshold (float or None): The gate fires if its statistic exceeds it.
        source (str or None): The folder or Hub repository it was loaded from. None if it was fitted in this process
            or loaded by PEFT itself.
        subfolder (str or None): The folder in `source`.
        revision (str or None): The commit of the repository.
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
    """Return the guardrails on a model in the order of their layers; an empty list without any.

    Args:
        model (nn.Module): Any model.

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
        model (nn.Module): A model with guardrails.
        names (str or iterable of str): Adapter names. An empty list disables all guardrails.

    Raises:
        GuardrailError: If one of the names is not a guardrail of the model. Nothing is changed then.
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


def config_named(name: str | None, model: nn.Module) -> SAEGuardrailConfig:
    """Return the config of a guardrail of the model; None names the only one.

    Raises:
        GuardrailError: If there is none of that name, or there are several.
    """
    there = _configs(model)
    if name is None and len(there) == 1:
        (name,) = there
    check_choice("name", name, sorted(there), GuardrailError)
    return there[str(name)]


def _configs(model: nn.Module) -> dict[str, SAEGuardrailConfig]:
    return {name: config for layer in guard_layers(model) for name, config in layer.guard_config.items()}


NO_MATRICES = "its fingerprint has no matrices of the base model, so a fine-tuned descendant is not detected"

State = Literal["guarding", "recording", "off", "raising", "missing"]


@dataclass(frozen=True)
class GuardrailState:
    """State of one guardrail in a call of the model.

    Attributes:
        adapter (str): Its name.
        layer (int or None): The decoder layer after which it works; None if it is not on the model.
        state (State): "guarding"; "recording" (`action="record"`: it only reports); "off" (disabled, or not among the
            active adapters); "raising" (the call is stopped); "missing" (it is in `peft_config`, but not on a layer, or
            nothing calls it).
        reason (str, *optional*, defaults to ""): The reason in a sentence. Empty for "guarding", unless a descendant of
            the base model is not detected.
    """

    adapter: str
    layer: int | None
    state: State
    reason: str = ""


@dataclass(frozen=True)
class GuardrailStatus:
    """Result of `guardrail_status`.

    Attributes:
        guardrails (tuple[GuardrailState, ...]): One entry per guardrail.
    """

    guardrails: tuple[GuardrailState, ...]

    @property
    def verdict(self) -> Literal["guarded", "raises", "unguarded"]:
        """Effect of a call on text: "raises" if it is stopped, "guarded" if every guardrail acts.

        Otherwise "unguarded": the model has no guardrail, or one that lets its topic pass.
        """
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
    """Return whether a call of the model now is guarded, raises, or lets text pass.

    Nothing is run except the check of the weights that a first call makes, too. `PeftModel`, `torch.compile`,
    `DistributedDataParallel` and FSDP are unwrapped.

    Args:
        model (Module): Any model, with or without guardrails.

    Raises:
        GuardrailError: If `model` is not a module.

    Example:

    ```python
    status = guardrail_status(model)
    assert status.verdict == "guarded", str(status)
    ```
    """
    layers = guard_layers(model)
    backbones = [(module, hooks_of(module, BackboneHooks)) for module in model.modules()]
    known: dict[int, str] = {}
    unsaid = ""
    for backbone, hooks in backbones:
        if hooks is not None:
            net = "misplaced" if is_hooked(backbone, hooks) else "lost"  # its hook raises at the end of a pass
            places = dict.fromkeys(hooks.guards, "placed") | dict.fromkeys(hooks.repeated(backbone), "repeated")
            places |= dict.fromkeys(hooks.missing(backbone), net)
            known |= {id(guard): places[index] for index, guard in hooks.guards.items()}
            unsaid = unsaid or why_unsaid(model, hooks)
    torn = any(_is_torn(module) for module in model.modules())
    found = [_state(layer, name, known.get(id(layer)), torn, unsaid) for layer in layers for name in layer.guard_config]
    lost = [
        _state(guard, name, known[id(guard)], torn, unsaid)
        for _, hooks in backbones
        if hooks is not None
        for guard in hooks.guards.values()
        if isinstance(guard, SAEGuardrailLayer) and not any(guard is layer for layer in layers)
        for name in guard.guard_config
    ]
    names = {guard.adapter for guard in (*found, *lost)}
    absent = [
        GuardrailState(name, None, "missing", "it is in peft_config, but on no layer. Attach it again")
        for name in _configured(model)
        if name not in names
    ]
    return GuardrailStatus((*found, *lost, *absent))


def _state(layer: SAEGuardrailLayer, name: str, place: str | None, torn: bool, unsaid: str) -> GuardrailState:
    config = layer.guard_config[name]
    if name not in layer.in_force:
        reason = "adapters are disabled" if layer.off else "it is not among the active adapters"
        return GuardrailState(name, config.layer, "off", reason)
    if place == "lost" or (place is None and not layer.in_place(layer.home)):
        return GuardrailState(name, config.layer, "missing", "all its hooks were removed. Attach it again")
    if place == "misplaced":
        reason = "its layer was replaced or moved, or its hooks were removed. Attach it again"
        return GuardrailState(name, config.layer, "raising", reason)
    if place == "repeated":
        return GuardrailState(name, config.layer, "raising", "its layer runs more than once in a pass")
    if place is None or torn:
        return GuardrailState(name, config.layer, "raising", "the hooks on the model were removed. Attach it again")
    if unsaid and config.action == "refuse":
        return GuardrailState(name, config.layer, "raising", unsaid)
    try:
        layer.check_ready(name)
    except GuardrailNotReady as error:
        return GuardrailState(name, config.layer, "raising", str(error))
    if config.action == "record":
        return GuardrailState(name, config.layer, "recording", 'action="record": it only reports')
    fingerprint = config.base_model.fingerprint
    weak = isinstance(fingerprint, dict) and not fingerprint.get("matrices")
    return GuardrailState(name, config.layer, "guarding", NO_MATRICES if weak else "")


def _is_torn(module: nn.Module) -> bool:
    """Return True if only one of the two hooks of a model with its head is left."""
    before = hooks_of(module, ModelHooks)
    if before is None:
        return any(isinstance(owner, ModelHooks) for owner in forward_hook_owners(module))
    return not is_hooked(module, before)


def _configured(model: nn.Module) -> list[str]:
    """Return the names of the guardrails in `peft_config` of the model or of a wrapped one."""
    found = (getattr(module, "peft_config", None) for module in model.modules())
    configs = next((configs for configs in found if isinstance(configs, dict)), {})
    return [name for name, config in configs.items() if config.peft_type == PEFT_TYPE]
