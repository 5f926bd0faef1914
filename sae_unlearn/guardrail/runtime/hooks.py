"""What a guardrail must know of the running forward pass and cannot see from inside a decoder layer.

Decoder layers receive a 4-D mask, a block mask or none, depending on the attention kernel, and no token ids. Two pairs
of hooks note what is needed on the way in: on the model (ids, mask, and how many positions' logits are wanted; see
`model_hooks`) and on its backbone (ids, mask, positions, and the length of the cache, which inside the loop over layers
is already half updated). The backbone of a multimodal model is given embeddings and the attention kernel's mask; what
counts then is what the model itself was given.

Every guardrail that is in force at a layer notes that it saw the pass. A pass that ends without that, because a layer
was left out or was run past its hooks, raises.

The hooks on the model with its head: what it was called with on the way in, and the message of rows that are refused
on the way out.
"""

from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from sae_unlearn.backbone.call_arguments import by_name, positional_names
from sae_unlearn.backbone.checkpointing import repeats_hooks, version_needed
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported
from sae_unlearn.guardrail.runtime.base_state import BaseState
from sae_unlearn.guardrail.runtime.cache_state import find_cache, has_state, past_length
from sae_unlearn.guardrail.runtime.call_cache import cache_of_call
from sae_unlearn.guardrail.runtime.call_context import CALL, INPUTS, NEXT, ForwardInputs, ModelCall, note, noted
from sae_unlearn.guardrail.runtime.masks import _is_2d, _refuse_packed, _shape_of
from sae_unlearn.guardrail.runtime.refusal import refuse
from sae_unlearn.guardrail.runtime.shown import takes_in_all


Hooks = TypeVar("Hooks")


class Guard(Protocol):
    """A guardrail's layer, as far as the hooks on its backbone know it."""

    def in_place(self, backbone_layer: nn.Module) -> bool: ...

    @property
    def in_force(self) -> list[str]: ...


_SEVERAL_AFTER_STATE = (
    "cache: expected one token after those in a recurrent cache, got several. transformers (5.24) reads there in "
    "`generate` the old tokens again, and Mamba forgets some. Pass the whole text without a cache."
)


class BackboneHooks:
    """Notes the inputs of a call to the backbone, the module that owns the list of decoder layers."""

    def __init__(self, backbone: nn.Module, list_name: str) -> None:
        self.names = positional_names(backbone.forward)
        self.list_name = list_name
        self.stateful = takes_in_all(getattr(backbone, "config", None))
        self.guards: dict[int, Guard] = {}

    def install(self, backbone: nn.Module) -> None:
        backbone.register_forward_pre_hook(self.before, with_kwargs=True)
        backbone.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = by_name(self.names, args, kwargs)
        in_force = any(guard.in_force for guard in self.guards.values())
        cache = cache_of_call(given) if in_force else find_cache(given.values())
        call: ModelCall | None = noted(CALL)
        if in_force:
            self._refuse_checkpoints(backbone)
        if call is None:  # the backbone is called by itself
            call = ModelCall()
            note(NEXT, None)
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        inputs = ForwardInputs(
            call.input_ids if ids is None else ids,
            call.attention_mask if _is_2d(call.attention_mask) and not _is_2d(mask) else mask,
            given.get("position_ids"),
            past_length(cache),
            has_state(cache),
            call.wanted,
            cache,
            [],
            self.stateful,
        )
        shape = _shape_of(given)
        several = shape is None or shape[1] > 1 or given.get("cu_seq_lens_q") is not None  # texts in a row, perhaps
        if several and in_force:
            if inputs.recurrent:
                raise GuardrailUnsupported(_SEVERAL_AFTER_STATE)
            _refuse_packed(given, shape, inputs)
        note(INPUTS, inputs)

    def after(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs: ForwardInputs | None = noted(INPUTS)
        note(INPUTS, None)
        if output is None or inputs is None:  # an error is on its way
            return
        for index, guard in self.guards.items():
            if index not in inputs.guarded and guard.in_force:
                raise GuardrailNotReady(self._why_not_seen(backbone, index))

    def missing(self, backbone: nn.Module) -> list[int]:
        """The layers on which a guardrail was put that is there no more, though nobody took it off by our means."""
        layers = getattr(backbone, self.list_name)
        depth = getattr(getattr(backbone, "config", None), "num_hidden_layers", len(layers))  # how many are run
        run = min(len(layers), depth) if isinstance(depth, int) else len(layers)
        return [i for i, guard in self.guards.items() if i >= run or not guard.in_place(layers[i])]

    def _refuse_checkpoints(self, backbone: nn.Module) -> None:
        """Raise where the hooks of a guarded layer would run again in the backward pass, when nothing is known of the
        call."""
        if not (backbone.training and torch.is_grad_enabled()):
            return
        layers = getattr(backbone, self.list_name)
        for index, guard in self.guards.items():
            if guard.in_force and index < len(layers) and repeats_hooks(backbone, layers[index]):
                raise GuardrailUnsupported(
                    f"{version_needed('gradient_checkpointing=True')} Train without it, or install that version."
                )

    def _why_not_seen(self, backbone: nn.Module, index: int) -> str:
        if not torch.compiler.is_compiling() and index in self.missing(backbone):
            return (
                f"Layer {index} was replaced, or its hooks were taken off, after a guardrail had been put on it: text "
                "would have passed unguarded. Attach the guardrail after such changes; `detach_guardrail` takes it off."
            )
        return (
            f"Layer {index} was not run in this pass, or was run past its hooks, so text would have passed unguarded. "
            "Call the layer and not its `forward`, and leave none out."
        )


def hooks_of(module: nn.Module, kind: type[Hooks]) -> Hooks | None:
    """The object of class `kind` whose methods are hooks of `module`, if there is one."""
    for hook in module._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, kind):
            return owner
    return None


def remove_hooks(module: nn.Module, kind: type) -> None:
    """Take off every hook of `module` that is a method of an object of class `kind`.

    They are looked up rather than remembered as handles, so that this works on deep copies and unpickled models too.
    """
    for hooks, extras in (
        (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
        (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
    ):
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), kind)]:
            del hooks[key]
            for extra in extras:
                extra.pop(key, None)


def refuse_rows_by_name(kwargs: dict[str, Any]) -> None:
    """Refuse PEFT's arguments that choose adapters row by row: each enabled guardrail judges every row.

    Raises:
        NotImplementedError: If `adapter_names` or `alora_offsets` was passed.
    """
    for name in ("adapter_names", "alora_offsets"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(
                f"{name}={kwargs[name]!r:.60}: expected None, for guardrails are not chosen by row. Use "
                "`use_guardrails(model, names)` before the call."
            )


class ModelHooks:
    """Notes the token ids, the mask and `logits_to_keep` of a call, and writes what was refused into what it gives.

    Attributes:
        base: the base model's weights as they were when the first guardrail was put on it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = positional_names(model.forward)
        self.base = BaseState(model)

    def install(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_rows_by_name(kwargs)
        given = by_name(self.names, args, kwargs)
        wanted = given.get("logits_to_keep")
        wanted = wanted if isinstance(wanted, int) and wanted > 0 else None
        note(CALL, ModelCall(given.get("input_ids"), given.get("attention_mask"), wanted))
        note(NEXT, None)  # of a call to the backbone alone, which has no logits

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call: ModelCall | None = noted(CALL)
        choices = noted(NEXT)
        note(CALL, None)
        note(NEXT, None)
        return None if choices is None else refuse(output, choices, None if call is None else call.wanted)
