"""What a guardrail must know of the running forward pass and cannot see from inside a decoder layer.

Decoder layers receive a 4-D mask, a block mask or none, depending on the attention kernel, and no token ids. Two pairs
of hooks note what is needed on the way in: on the model (ids, mask, and how many positions' logits are wanted) and on
its backbone (ids, mask, positions, and the length of the cache, which inside the loop over layers is already half
updated). The backbone of a multimodal model is given embeddings and the attention kernel's mask; what counts then is
what the model itself was given.

Every guardrail that is in force at a layer notes that it saw the pass. A pass that ends without that, because a layer
was left out or was run past its hooks, raises.
"""

import inspect
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache

from sae_unlearn.guardrail.errors import GuardrailNotReady
from sae_unlearn.guardrail.history import find_cache, has_state, past_length
from sae_unlearn.guardrail.pass_notes import CALL, INPUTS, NEXT, note, noted


Hooks = TypeVar("Hooks")


class Guard(Protocol):
    """A guardrail's layer, as far as the hooks on its backbone know it."""

    def in_place(self, backbone_layer: nn.Module) -> bool: ...

    @property
    def in_force(self) -> bool: ...


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


class ModelHooks:
    """Notes the token ids, the mask and `logits_to_keep` of a call to the model with its head."""

    def __init__(self, model: nn.Module) -> None:
        self.names = list(inspect.signature(model.forward).parameters)

    def install(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _by_name(self.names, args, kwargs)
        wanted = given.get("logits_to_keep")
        wanted = wanted if isinstance(wanted, int) and wanted > 0 else None
        note(CALL, ModelCall(given.get("input_ids"), given.get("attention_mask"), wanted))

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        note(CALL, None)


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
        if not torch.compiler.is_compiling():
            self._check_places(backbone)
        given = _by_name(self.names, args, kwargs)
        _refuse_packed(given)
        cache = find_cache(given.values())
        if cache is None:
            _refuse_foreign_cache(given)
        call: ModelCall | None = noted(CALL)
        if call is None:  # the backbone is called by itself
            call = ModelCall()
            note(NEXT, None)
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        note(
            INPUTS,
            ForwardInputs(
                call.input_ids if ids is None else ids,
                call.attention_mask if _is_2d(call.attention_mask) and not _is_2d(mask) else mask,
                given.get("position_ids"),
                past_length(cache),
                has_state(cache),
                call.wanted,
                cache,
                [],
            ),
        )

    def after(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs: ForwardInputs | None = noted(INPUTS)
        note(INPUTS, None)
        if output is None or inputs is None:  # an error is on its way
            return
        for index, guard in self.guards.items():
            if guard.in_force and index not in inputs.guarded:
                raise GuardrailNotReady(
                    f"Layer {index} was not run in this pass, or was run past its hooks, so text would have passed "
                    "unguarded. Call the layer and not its `forward`, and leave none out."
                )

    def missing(self, backbone: nn.Module) -> list[int]:
        """The layers on which a guardrail was put that is there no more, though nobody took it off by our means."""
        layers = getattr(backbone, self.list_name)
        depth = getattr(getattr(backbone, "config", None), "num_hidden_layers", len(layers))  # how many are run
        run = min(len(layers), depth) if isinstance(depth, int) else len(layers)
        return [i for i, guard in self.guards.items() if i >= run or not guard.in_place(layers[i])]

    def _check_places(self, backbone: nn.Module) -> None:
        missing = self.missing(backbone)
        if missing:
            raise GuardrailNotReady(
                f"Layer {missing[0]} was replaced, or its hooks were taken off, after a guardrail had been put on it: "
                "text would pass unguarded. Attach the guardrail after such changes; `detach_guardrail` takes it off."
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
    mask, past = inputs.attention_mask, inputs.past
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
    """`[batch, seq]` bool: which tokens of this pass are not padding."""
    chunk = mask_of_pass(inputs, batch, seq)
    if chunk is not None:
        return chunk.to(device).bool()
    visible = _visible_to_themselves(inputs, batch, seq)
    if visible is not None:
        return visible.to(device)
    mask, positions = inputs.attention_mask, inputs.position_ids
    if mask is not None and positions is not None and positions.ndim == 2 and seq > 1:
        # a mask of another kind hides the padding, but left-padded rows show it in their positions: those of real
        # tokens rise by one up to the last
        ramp = positions[:, -1:] - torch.arange(seq - 1, -1, -1, device=positions.device)
        return (positions == ramp).to(device).expand(batch, seq)
    return torch.ones(batch, seq, dtype=torch.bool, device=device)


def _visible_to_themselves(inputs: ForwardInputs, batch: int, seq: int) -> Tensor | None:
    """`[batch, seq]` bool by a 4-D mask `[batch or 1, heads or 1, seq, keys]`: padding is what not even it itself sees.
    None without such a mask, or where its columns are not the cache's tokens in their order (sliding caches)."""
    mask, past = inputs.attention_mask, inputs.past
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[2] != seq or mask.shape[0] not in (1, batch):
        return None
    if isinstance(past, int) and past + seq > mask.shape[3]:
        return None
    own = (torch.arange(seq, device=mask.device) + past).clamp(max=mask.shape[3] - 1)
    found = mask[:, 0].gather(2, own[None, :, None].expand(mask.shape[0], seq, 1))[..., 0]
    seen = found if found.dtype == torch.bool else (found > -1) if found.is_floating_point() else found != 0
    return seen.expand(batch, seq)


def _is_2d(mask: Any) -> TypeGuard[Tensor]:
    return isinstance(mask, Tensor) and mask.ndim == 2


def _by_name(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a function whose parameters are `names`."""
    return {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}


def _refuse_packed(given: dict[str, Any]) -> None:
    if given.get("cu_seq_lens_q") is not None:
        raise NotImplementedError(
            "A guardrail cannot tell packed sequences apart (continuous batching, `generate_batch`, padding-free "
            "training); use padded batches and `generate`."
        )
    positions = given.get("position_ids")
    if given.get("attention_mask") is not None or not isinstance(positions, Tensor) or positions.ndim != 2:
        return
    if positions.shape[1] == 1:
        return  # one token cannot restart, and to look would wait for the device at every step
    if not torch.compiler.is_compiling() and bool((positions.diff(dim=1) <= 0).any()):
        raise NotImplementedError(
            "position_ids restart within a row and there is no attention mask: this looks like packed sequences, "
            "which a guardrail cannot tell apart. Pass an attention mask, or one sequence per row."
        )


def _refuse_foreign_cache(given: dict[str, Any]) -> None:
    for name in _CACHE_NAMES:
        if given.get(name) is not None:
            raise NotImplementedError(
                f"{name} is a {type(given[name]).__name__}, not a transformers `Cache`: the guardrail has nowhere to "
                "keep its state. Call with `use_cache=False`, or with a `DynamicCache`."
            )
