"""What the hooks of a running call tell each other, each thread by itself.

Thread-local and not a context variable: `torch.compile` can trace it, and where a graph breaks between two hooks, code
that was compiled finds the notes of its own thread's call again.

A pass may run inside of another, be it of another guarded model or of the same. So a note names its owner and the note
that it found, and at its end a pass puts that back. An interrupt (Ctrl-C) ends a pass without its hooks: what it left
is passed over, since its module is no longer being called.
"""

import sys
import threading
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from sae_unlearn.errors import GuardrailNotReady


class Guard(Protocol):
    """A guardrail's layer, as far as the hooks on its backbone know it."""

    def in_place(self, backbone_layer: nn.Module) -> bool: ...

    @property
    def in_force(self) -> list[str]: ...


class Owner(Protocol):
    """The hooks of a backbone: the guards of its layers by index."""

    guards: dict[int, Guard]


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
        guarded: the layers at which guardrails have seen this pass so far.
        stateful: whether the model has recurrent layers, see `shown`.
        refused: of `ModelCall`.
        owner, module, outer: see the module.
    """

    input_ids: Tensor | None
    attention_mask: Any
    position_ids: Tensor | None
    past: int | Tensor
    recurrent: bool
    wanted: int | None
    cache: Cache | None
    guarded: list[int]
    stateful: bool = False
    refused: list[Tensor] = []  # noqa: RUF012 - of notes that nobody reads
    owner: Owner | None = None
    module: nn.Module | None = None
    outer: "ForwardInputs | None" = None


class ModelCall:
    """What the model with its head was called with, as in `ForwardInputs`.

    Attributes:
        refused: what `refusal` says of the tokens that have to come next, at most one entry.
        taken: not empty once the backbone has read it.
        owner, module, outer: see the module.
    """

    def __init__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        wanted: int | None = None,
        owner: Any = None,
        module: nn.Module | None = None,
        outer: "ModelCall | None" = None,
    ) -> None:
        self.input_ids, self.attention_mask, self.wanted = input_ids, attention_mask, wanted
        self.owner, self.module, self.outer = owner, module, outer
        self.refused: list[Tensor] = []
        self.taken: list[bool] = []


def current_inputs(batch: int, seq: int, guard: Guard, index: int) -> ForwardInputs:
    """The notes of the running forward pass of `guard`'s backbone, at decoder layer `index`, which is given
    `[batch, seq, d_in]`. Ids of another number of tokens are not those that the layer sees, and are left out.

    Raises:
        GuardrailNotReady: the decoder layer was called outside of its model, where nothing is known of the tokens.
    """
    inputs: ForwardInputs | None = noted(INPUTS)
    while inputs is not None and (inputs.owner is None or inputs.owner.guards.get(index) is not guard):
        inputs = inputs.outer
    if inputs is None:
        raise GuardrailNotReady(
            "A guarded decoder layer was called outside of its model's forward pass, where the guardrail cannot see "
            "the attention mask. Call the model, or take the guardrail off with `unload()`."
        )
    ids = inputs.input_ids
    return inputs if ids is None or ids.shape == (batch, seq) else inputs._replace(input_ids=None)


INPUTS, CALL = "inputs of the backbone", "call of the model"

_NOTES = threading.local()
_CALLING = nn.Module._call_impl.__code__


class Note(Protocol):
    """What a pass leaves for its own hooks.

    Attributes:
        owner: the object whose hooks left it.
        module: the one that is being called.
        outer: the note that was found.
    """

    @property
    def owner(self) -> Any: ...

    @property
    def module(self) -> Any: ...

    @property
    def outer(self) -> Any: ...


N = TypeVar("N", bound=Note)


def note(name: str, value: Any) -> None:
    """Leave the note `name`, one of those above; None takes it away."""
    setattr(_NOTES, name, value)


def noted(name: str) -> Any:
    """The note of that name; None if there is none."""
    return getattr(_NOTES, name, None)


def running(left: N | None, module: nn.Module) -> N | None:
    """The first note from `left` outwards whose pass is not over, at the beginning of a call of `module`. While code is
    compiled nobody looks."""
    if left is None or torch.compiler.is_compiling():
        return left
    called = _being_called()
    if any(each is module for each in called):
        called.remove(module)  # this call
    found: Any = left
    while found is not None and not any(each is found.module for each in called):
        found = found.outer
    return cast("N | None", found)


def own_note(name: str, owner: Any) -> Any:
    """The innermost note of that name that `owner` left; None if there is none."""
    found = noted(name)
    while found is not None and found.owner is not owner:
        found = found.outer
    return found


# torch 2.13 compiles once more for a thread in which a note was never set; so this one begins as after a call.
for _name in (INPUTS, CALL):
    note(_name, None)


def _being_called() -> list[Any]:
    """The modules whose call this code is part of."""
    found: list[Any] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _CALLING:
            found.append(frame.f_locals.get("self"))
        frame = frame.f_back
    return found
