"""`guardrail_status`: what would become of text that is given to this model now."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from sae_unlearn.guardrail.errors import GuardrailNotReady
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, hooks_of


State = Literal["guarding", "recording", "off", "raising", "missing"]


@dataclass(frozen=True)
class GuardrailState:
    """What one guardrail does when the model is called.

    Attributes:
        adapter: its name.
        layer: the decoder layer after which it works; None if it is nowhere on the model.
        state: "guarding"; "recording" (`action="record"`: it reports and edits nothing); "off" (disabled, or not among
            the active adapters); "raising" (the call is stopped); "missing" (the model names it in `peft_config`, but
            no layer carries it).
        reason: a sentence; empty while guarding.
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
            known |= {id(guard): "misplaced" if index in missing else "placed" for index, guard in hooks.guards.items()}
    found = [_state(layer, name, known.get(id(layer))) for layer in layers for name in layer.guard_config]
    lost = [
        _state(guard, name, "misplaced")
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


def _state(layer: SAEGuardrailLayer, name: str, place: str | None) -> GuardrailState:
    config = layer.guard_config[name]
    if place == "misplaced":
        reason = "its layer was replaced, or the hooks were taken off; attach it again"
        return GuardrailState(name, config.layer, "raising", reason)
    if layer.disable_adapters or name not in layer.active_adapters:
        reason = "adapters are disabled" if layer.disable_adapters else "it is not among the active adapters"
        return GuardrailState(name, config.layer, "off", reason)
    if place is None:
        return GuardrailState(name, config.layer, "raising", "the hooks on the model were taken off; attach it again")
    try:
        layer.check_ready(name)
    except GuardrailNotReady as error:
        return GuardrailState(name, config.layer, "raising", str(error))
    if config.action == "record":
        return GuardrailState(name, config.layer, "recording", 'action="record": it reports, and edits nothing')
    return GuardrailState(name, config.layer, "guarding")


def _configured(model: nn.Module) -> list[str]:
    """Names of the guardrails in `peft_config`, of the model or of what it wraps."""
    found = (getattr(module, "peft_config", None) for module in model.modules())
    configs = next((configs for configs in found if isinstance(configs, dict)), {})
    return [name for name, config in configs.items() if config.peft_type == PEFT_TYPE]
