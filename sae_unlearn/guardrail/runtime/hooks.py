"""What a guardrail must know of the running forward pass and cannot see from inside a decoder layer.

Decoder layers receive a 4-D mask, a block mask or none, depending on the attention kernel, and no token ids. Two pairs
of hooks note what is needed on the way in: on the model (ids, mask, and how many positions' logits are wanted; see
`model_hooks`) and on its backbone (ids, mask, positions, and the length of the cache, which inside the loop over layers
is already half updated). The backbone of a multimodal model is given embeddings and the attention kernel's mask; what
counts then is what the model itself was given.

Every guardrail that is in force at a layer notes that it saw the pass. A pass that ends without that, because a layer
was left out or was run past its hooks, raises.
"""

import inspect
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache

from sae_unlearn.guardrail.errors import GuardrailNotReady
from sae_unlearn.guardrail.runtime.cache_state import find_cache, has_state, past_length
from sae_unlearn.guardrail.runtime.call_context import CALL, INPUTS, NEXT, note, noted
from sae_unlearn.guardrail.runtime.masks import kept_by, why_not_one_text


Hooks = TypeVar("Hooks")


class Guard(Protocol):
    """A guardrail's layer, as far as the hooks on its backbone know it."""

    def in_place(self, backbone_layer: nn.Module) -> bool: ...

    @property
    def in_force(self) -> list[str]: ...


class ForwardInputs(NamedTuple):
    """The notes of one forward pass.

    Attributes:
        input_ids: `[batch, seq]`, None when the model was called with `inputs_embeds` alone.
        attention_mask: 2-D `[batch, past + seq]` if the backbone or the model was given such a one; else as given to
            the backbone: 4-D, of another kind, or None.
        position_ids: `[batch or 1, seq]` or None.
        past: tokens in the cache before this pass, an int or a 0-d tensor.
        recurrent: whether the cache has recurrent layers only, and they hold a state from before this pass.
        wanted: number of last positions whose logits are wanted; None if unknown or all.
        cache: the cache the model was called with, if any.
        guarded: the layers at which guardrails have seen this pass so far; written by `seen_at`.
    """

    input_ids: Tensor | None
    attention_mask: Any
    position_ids: Tensor | None
    past: int | Tensor
    recurrent: bool
    wanted: int | None
    cache: Cache | None
    guarded: list[int]


class ModelCall(NamedTuple):
    """What the model with its head was called with, as in `ForwardInputs`."""

    input_ids: Tensor | None = None
    attention_mask: Any = None
    wanted: int | None = None


_CACHE_NAMES = ("past_key_values", "past_key_value", "cache_params", "state", "mems", "layer_past")


def current_inputs(batch: int, seq: int) -> ForwardInputs:
    """The notes of the running forward pass, at a decoder layer that is given `[batch, seq, d_in]`. Ids of another
    number of tokens are not those that the layer sees, and are left out.

    Raises:
        GuardrailNotReady: the decoder layer was called outside of its model, where nothing is known of the tokens.
    """
    inputs: ForwardInputs | None = noted(INPUTS)
    if inputs is None:
        raise GuardrailNotReady(
            "A guarded decoder layer was called outside of its model's forward pass, where the guardrail cannot see "
            "the attention mask. Call the model, or take the guardrail off with `unload()`."
        )
    ids = inputs.input_ids
    return inputs if ids is None or ids.shape == (batch, seq) else inputs._replace(input_ids=None)


class BackboneHooks:
    """Notes the inputs of a call to the backbone, the module that owns the list of decoder layers."""

    def __init__(self, backbone: nn.Module, list_name: str) -> None:
        self.names = list(inspect.signature(backbone.forward).parameters)
        self.list_name = list_name
        self.guards: dict[int, Guard] = {}

    def install(self, backbone: nn.Module) -> None:
        backbone.register_forward_pre_hook(self.before, with_kwargs=True)
        backbone.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = by_name(self.names, args, kwargs)
        cache = find_cache(given.values())
        if cache is None:
            _refuse_foreign_cache(given)
        call: ModelCall | None = noted(CALL)
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
        )
        shape = _shape_of(given)
        several = shape is None or shape[1] > 1 or given.get("cu_seq_lens_q") is not None  # texts in a row, perhaps
        if several and any(guard.in_force for guard in self.guards.values()):
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


def mask_of_pass(inputs: ForwardInputs, batch: int, seq: int) -> Tensor | None:
    """`[batch, seq]`, the part of a 2-D attention mask that is about this pass, as given; None without such a mask.

    Raises:
        GuardrailNotReady: the mask does not cover the tokens.
    """
    mask, past = _telling_mask(inputs), inputs.past
    if not _is_2d(mask):
        return None
    if isinstance(past, int):
        chunk = mask if mask.shape[1] == seq else mask[:, past : past + seq]
    else:  # counted from the start: a static cache may come with a mask padded to the full length on the right
        chunk = mask.index_select(1, torch.arange(seq, device=mask.device) + past)
    if chunk.shape != (batch, seq):
        raise GuardrailNotReady(
            f"The attention mask is {tuple(mask.shape)}, which does not cover the {seq} tokens after {past} cached "
            f"ones of a batch of {batch}; pass the mask of the whole sequence."
        )
    return chunk


def kept_tokens(inputs: ForwardInputs, batch: int, seq: int, device: torch.device) -> Tensor:
    """`[batch, seq]` bool: which tokens of this pass are not padding.

    Raises:
        GuardrailNotReady: a 2-D mask does not cover the tokens.
        NotImplementedError: another mask does not tell, see `kernel_mask`.
    """
    chunk = mask_of_pass(inputs, batch, seq)
    if chunk is not None:
        return chunk.to(device).bool()
    mask = _telling_mask(inputs)
    if mask is None or (seq == 1 and sees_all(inputs)):
        return torch.ones(batch, seq, dtype=torch.bool, device=device)
    return kept_by(mask, inputs.past, batch, seq).to(device)


def sees_all(inputs: ForwardInputs) -> bool:
    """Whether a single token is no padding for want of a mask that could say so, a tensor."""
    return not isinstance(_telling_mask(inputs), Tensor)


def _telling_mask(inputs: ForwardInputs) -> Any:
    """The mask that tells what is padding: the one given, and of one for each kind of layer that of full attention.
    Full attention without a mask sees everything."""
    masks = inputs.attention_mask
    if not isinstance(masks, dict):
        return masks
    if "full_attention" in masks:
        return masks["full_attention"]
    for mask in masks.values():
        if mask is not None:
            return mask
    return None


def _is_2d(mask: Any) -> TypeGuard[Tensor]:
    return isinstance(mask, Tensor) and mask.ndim == 2


def by_name(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a function whose parameters are `names`."""
    return {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}


def _refuse_packed(given: dict[str, Any], shape: tuple[int, int] | None, inputs: ForwardInputs) -> None:
    """Refuse several texts in a row, of which the gate would make one. Compiled code is not looked at, and of a 2-D
    mask only the positions beside it are: to look waits for the device."""
    if given.get("cu_seq_lens_q") is not None:
        raise NotImplementedError(
            "A guardrail cannot tell packed sequences apart (continuous batching, `generate_batch`, padding-free "
            "training); use padded batches and `generate`."
        )
    if shape is None or torch.compiler.is_compiling():
        return
    mask = _telling_mask(inputs)
    why = None if mask is None or _is_2d(mask) else why_not_one_text(mask, inputs.past, *shape)
    positions = inputs.position_ids
    if why is None and isinstance(positions, Tensor) and positions.ndim == 2:
        why = _why_positions_are_packed(positions, inputs, *shape)
    if why is not None:
        raise NotImplementedError(
            f"This looks like packed sequences, which a guardrail cannot tell apart: {why}. Pass one text per row, "
            "position_ids that rise, and a 2-D attention mask of 0 and 1."
        )


def _why_positions_are_packed(positions: Tensor, inputs: ForwardInputs, batch: int, seq: int) -> str | None:
    """What in the positions `[batch or 1, seq]`, or in a 2-D mask beside them, is a sign of several texts in a row;
    None without one. It waits for the device."""
    if _telling_mask(inputs) is None:  # then transformers takes every gap for the start of another text
        torn = bool((positions.diff(dim=1) != 1).any())
        return "position_ids do not rise by one from token to token, and there is no attention mask" if torn else None
    kept = kept_tokens(inputs, batch, seq, positions.device)
    shown = positions.masked_fill(~kept, positions.amin())  # of padding they may be anything
    fall = (kept & (shown < shown.cummax(dim=1).values)).any()
    chunk = mask_of_pass(inputs, batch, seq)
    numbered = torch.zeros_like(fall) if chunk is None else (chunk != chunk.bool()).any().to(fall.device)
    if not bool(fall | numbered):
        return None
    return "the attention mask holds numbers other than 0 and 1" if bool(numbered) else "position_ids fall within a row"


def _shape_of(given: dict[str, Any]) -> tuple[int, int] | None:
    """Batch and tokens of a call of the backbone; None where it shows them in no way that is known."""
    for name in ("input_ids", "inputs_embeds"):
        tokens = given.get(name)
        if isinstance(tokens, Tensor) and tokens.ndim >= 2:
            return tokens.shape[0], tokens.shape[1]
    return None


def _refuse_foreign_cache(given: dict[str, Any]) -> None:
    for name in _CACHE_NAMES:
        if given.get(name) is not None:
            raise NotImplementedError(
                f"{name} is a {type(given[name]).__name__}, not a transformers `Cache`: the guardrail has nowhere to "
                "keep its state. Call with `use_cache=False`, or with a `DynamicCache`."
            )
