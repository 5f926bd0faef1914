"""Hooks that note what a guardrail must know of the forward pass and cannot see in a decoder layer.

Decoder layers receive a 4-D mask, a block mask or none, depending on the attention kernel, and no token ids. Two pairs
of hooks note what is needed on the way in: on the model (ids, mask, and the number of positions whose logits are
requested) and on its backbone (ids, mask, positions, and the length of the cache, which is already half updated inside
the loop over layers). The backbone of a multimodal model receives embeddings and the attention kernel's mask; then the
inputs of the model itself count.

A refusal is written into logits, which a backbone does not have. So with `action="refuse"` each pass of the backbone
must be the only one in a call of the model. Any other raises, whether a row fires or not.

Every guardrail that is active at a layer notes that it saw the pass. A pass that ends without this, because a layer was
left out or its hooks did not run, raises. On the way out, the hooks on the model write the message of refused rows.
"""

from typing import Any, TypeVar

import torch
from torch import nn

from sae_unlearn.backbone.attention_masks import mask_kinds
from sae_unlearn.backbone.call_arguments import by_name, positional_names
from sae_unlearn.backbone.checkpointing import repeats_hooks, version_needed
from sae_unlearn.backbone.layers import can_generate
from sae_unlearn.backbone.paged_cache import is_paged
from sae_unlearn.backbone.private_api import forward_hook_owners, pre_hook_owners
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported
from sae_unlearn.guardrail.runtime.base_state import BaseState
from sae_unlearn.guardrail.runtime.cache_state import find_cache, has_state, past_length
from sae_unlearn.guardrail.runtime.call_cache import cache_of_call
from sae_unlearn.guardrail.runtime.call_context import (
    CALL,
    INPUTS,
    ForwardInputs,
    Guard,
    ModelCall,
    note,
    noted,
    own_note,
    running,
)
from sae_unlearn.guardrail.runtime.early_exit import end_draft, is_draft
from sae_unlearn.guardrail.runtime.mask_reading import is_2d, read_masks
from sae_unlearn.guardrail.runtime.packed_rows import WholeRows, rows_of_call
from sae_unlearn.guardrail.runtime.packing import (
    packing_argument,
    refuse_argument,
    refuse_packed,
    shape_of,
    text_positions,
)
from sae_unlearn.guardrail.runtime.paged_guards import running_guards
from sae_unlearn.guardrail.runtime.refusal import refuse
from sae_unlearn.guardrail.runtime.shown import takes_in_all


Hooks = TypeVar("Hooks")


_SEVERAL_AFTER_STATE = (
    "cache: expected one token after those in a recurrent cache, got several. transformers (5.24) reads there in "
    "`generate` the old tokens again, and Mamba forgets some. Pass the whole text without a cache."
)
LOST = (
    "The guardrail's notes of a pass were gone at its end, so text could have passed unguarded. Attach guardrails "
    "between calls, and let no code clear them."
)


UNSAID = (
    'action="refuse": expected a call of the model, whose logits hold the message, got one of its backbone or past its '
    "hooks. Call the model once, not its `forward`, or use another action."
)


class BackboneHooks:
    """Hooks that note the inputs of a call to the backbone, the module with the list of decoder layers.

    Args:
        backbone (nn.Module): The backbone.
        list_name (str): Name of that list.
        caller (ModelHooks, *optional*): Hooks of the model whose backbone it is.
    """

    def __init__(self, backbone: nn.Module, list_name: str, caller: Any = None) -> None:
        self.names = positional_names(backbone.forward)
        self.list_name = list_name
        self.caller = caller
        self.stateful = takes_in_all(getattr(backbone, "config", None))
        self.kinds = mask_kinds(getattr(backbone, "config", None))
        self.guards: dict[int, Guard] = {}

    def install(self, backbone: nn.Module) -> None:
        backbone.register_forward_pre_hook(self.before, with_kwargs=True)
        backbone.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outer: ForwardInputs | None = running(noted(INPUTS), backbone)
        inputs = ForwardInputs(None, None, None, 0, False, None, None, [], self.stateful, [], self, backbone, outer)
        note(INPUTS, inputs)  # at once, so that `after` finds its own note after any error
        given = by_name(self.names, args, kwargs)
        in_force = any(guard.in_force for guard in self.guards.values())
        paged = is_paged(given.get("cache"))
        cache = cache_of_call(given) if in_force and not paged else find_cache(given.values())
        call: ModelCall | None = noted(CALL)
        if in_force:
            self._refuse_checkpoints(backbone)
        if call is None or call.owner is not self.caller or call.taken:  # the backbone is called directly
            call = ModelCall()
        if (call.owner is None or not self.caller.has_text) and any(guard.refuses for guard in self.guards.values()):
            raise GuardrailNotReady(UNSAID)
        call.taken.append(True)
        if paged:
            self._before_requests(inputs, given, call)
            return
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        inputs = inputs._replace(
            input_ids=call.input_ids if ids is None else ids,
            attention_mask=call.attention_mask if is_2d(call.attention_mask) and not is_2d(mask) else mask,
            position_ids=given.get("position_ids"),
            past=past_length(cache),
            recurrent=has_state(cache),
            wanted=call.wanted,
            cache=cache,
            refused=call.refused,
        )
        if in_force:
            shape = shape_of(given)
            packed = self._packed_texts(backbone, given, shape, inputs)
            if packed is not None:
                call.packed = True
                note(INPUTS, inputs._replace(packed=packed))
                return
            packing = packing_argument(given)
            if packing is not None:
                refuse_argument(packing)
            inputs = inputs._replace(masks=read_masks(inputs.attention_mask, backbone, self.kinds, *shape))
            if shape[1] > 1:  # possibly several texts in a row
                if inputs.recurrent:
                    raise GuardrailUnsupported(_SEVERAL_AFTER_STATE)
                refuse_packed(shape, inputs)
        note(INPUTS, inputs)

    def _packed_texts(
        self, backbone: nn.Module, given: dict[str, Any], shape: tuple[int, int], inputs: ForwardInputs
    ) -> WholeRows | None:
        """Return the texts of a padding-free batch that can be judged one by one, see `packed_rows`."""
        if shape[1] == 1:
            return None
        positions, cached = text_positions(inputs.position_ids, *shape), inputs.cache is not None or self.stateful
        return rows_of_call(given, inputs.attention_mask, positions, backbone, cached)

    def _before_requests(self, inputs: ForwardInputs, given: dict[str, Any], call: ModelCall) -> None:
        """Note a pass of continuous batching, whose rows are pieces of requests.

        Also while no guardrail is enabled: another thread may enable one within the pass.
        """
        ids = given.get("input_ids")
        ids = call.input_ids if ids is None else ids  # a multimodal model passes embeddings to its text backbone
        call.packed, packed = True, running_guards().pass_of({**given, "input_ids": ids})
        note(INPUTS, inputs._replace(input_ids=ids, refused=call.refused, packed=packed))

    def after(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs: ForwardInputs | None = own_note(INPUTS, self)
        if inputs is not None:
            note(INPUTS, inputs.outer)
        if output is None:  # an error is being raised
            if not torch.compiler.is_compiling():
                end_draft(backbone)
            return
        compiled = torch.compiler.is_compiling()
        for index, guard in self.guards.items():
            if not guard.in_force:
                continue
            seen = inputs is not None and index in inputs.guarded
            if (seen and (compiled or self._is_there(backbone, index))) or self._is_spared(backbone, index):
                continue
            raise GuardrailNotReady(LOST if inputs is None else self._why_not_seen(backbone, index))
        if inputs is not None and inputs.refused:
            call: ModelCall | None = noted(CALL)
            if call is None or call.refused is not inputs.refused or not is_hooked(call.module, self.caller):
                raise GuardrailNotReady(LOST)  # the refusal would not be written

    def _is_spared(self, backbone: nn.Module, index: int) -> bool:
        """Return True if layer `index` is behind those that a draft runs."""
        return not torch.compiler.is_compiling() and index >= self._depth(backbone) and is_draft(backbone)

    def _depth(self, backbone: nn.Module) -> int:
        """Return the number of layers that are run."""
        layers = len(getattr(backbone, self.list_name))
        depth = getattr(getattr(backbone, "config", None), "num_hidden_layers", layers)
        return min(layers, depth) if isinstance(depth, int) else layers

    def missing(self, backbone: nn.Module) -> list[int]:
        """Return the guarded layers whose guardrail is missing, though it was not removed by this package."""
        return [index for index in self.guards if not self._is_there(backbone, index)]

    def repeated(self, backbone: nn.Module) -> list[int]:
        """Return the guarded layers that stand more than once in the list of layers that are run."""
        layers = list(getattr(backbone, self.list_name))[: self._depth(backbone)]
        return [i for i, guard in self.guards.items() if sum(guard.in_place(layer) for layer in layers) > 1]

    def _is_there(self, backbone: nn.Module, index: int) -> bool:
        layers = getattr(backbone, self.list_name)
        return index < self._depth(backbone) and self.guards[index].in_place(layers[index])

    def _refuse_checkpoints(self, backbone: nn.Module) -> None:
        """Raise if the hooks of a guarded layer would run again in the backward pass.

        The notes of the call are gone by then.
        """
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
                f"Layer {index} was replaced, or its hooks were removed, after a guardrail was attached: "
                "text would pass "
                "unguarded. Attach the guardrail after such changes; `detach_guardrail` removes it."
            )
        return (
            f"Layer {index} was not run in this pass, or without its hooks, so text would pass unguarded. "
            "Call the layer "
            "and not its `forward`, and skip no layer."
        )


def hooks_of(module: nn.Module, kind: type[Hooks]) -> Hooks | None:
    """Return the object of class `kind` whose methods are hooks of `module`, or None."""
    return next((owner for owner in pre_hook_owners(module) if isinstance(owner, kind)), None)


def any_in_force(model: nn.Module) -> bool:
    """Return True if a guardrail of the model is enabled."""
    return any(module.in_force for module in model.modules() if hasattr(module, "guard_config"))


def is_hooked(module: nn.Module | None, owner: object) -> bool:
    """Return True if a method of `owner` is called at the end of each call of `module`."""
    return module is not None and any(found is owner for found in forward_hook_owners(module))


def refuse_rows_by_name(kwargs: dict[str, Any]) -> None:
    """Refuse PEFT's arguments that choose adapters row by row: each enabled guardrail judges every row.

    Raises:
        GuardrailUnsupported: If `adapter_names` or `alora_offsets` was passed.
    """
    for name in ("adapter_names", "alora_offsets"):
        if kwargs.get(name) is not None:
            raise GuardrailUnsupported(
                f"{name}={kwargs[name]!r:.60}: expected None, since guardrails are not chosen by row. Use "
                "`enable_guardrails(model, names)` before the call."
            )


class ModelHooks:
    """Hooks that note ids, mask and `logits_to_keep` of a call, and write refusals into its output.

    Attributes:
        base: State of the base model's weights before the first guardrail.
        has_text: True if the model gives logits of next tokens, in which a refusal can be written.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = positional_names(model.forward)
        self.base = BaseState(model)
        self.has_text = can_generate(model)

    def install(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_rows_by_name(kwargs)
        given = by_name(self.names, args, kwargs)
        outer: ModelCall | None = running(noted(CALL), model)
        keep = given.get("logits_to_keep")
        note(CALL, ModelCall(given.get("input_ids"), given.get("attention_mask"), keep, self, model, outer))

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call: ModelCall | None = own_note(CALL, self)
        if call is None:
            if output is not None:
                raise GuardrailNotReady(LOST)
            return None
        note(CALL, call.outer)
        if not call.refused or output is None:
            return None
        return refuse(output, call.refused[0], call.keep, call.packed)
