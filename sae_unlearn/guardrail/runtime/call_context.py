"""Notes that the hooks of a running call leave for each other, in each thread separately.

Thread-local and not a context variable: `torch.compile` can trace it, and if a graph breaks between two hooks, compiled
code finds the notes of its own thread's call.

A pass may run inside another one, of another guarded model or of the same. So a note names its owner and the note
before it, and at its end a pass restores that. An interrupt (Ctrl-C) ends a pass without its hooks: its notes are
skipped, since its module is no longer being called.
"""

import os
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.runtime.mask_reading import PassMasks


class Guard(Protocol):
    """A guardrail's layer as the hooks on its backbone know it."""

    def in_place(self, backbone_layer: nn.Module) -> bool: ...

    @property
    def in_force(self) -> list[str]: ...

    @property
    def refuses(self) -> bool: ...


class Owner(Protocol):
    """The hooks of a backbone: the guarded layers by index."""

    guards: dict[int, Guard]


class ForwardInputs(NamedTuple):
    """The notes of one forward pass.

    Attributes:
        input_ids (Tensor or None): `[batch, seq]`. None if the model was called with `inputs_embeds` only.
        attention_mask: 2-D `[batch, past + seq]` if the backbone or the model received one; otherwise as passed to the
            backbone: 4-D, of another kind, or None.
        masks (PassMasks): Reading of `attention_mask`, if a guardrail is active.
        position_ids (Tensor or None): `[batch or 1, seq]`.
        past (int or Tensor): Tokens in the cache before this pass, an int or a 0-d tensor.
        recurrent (bool): The cache has only recurrent layers, with a state from before this pass.
        wanted (int or None): Number of last positions whose logits are requested. None if unknown, all, or chosen
            otherwise.
        cache (Cache or None): The cache with which the model was called.
        guarded: The layers at which guardrails have seen this pass so far.
        stateful (bool): The model has recurrent layers, see `shown`.
        refused: Of `ModelCall`.
        packed: The pass as a `PackedPass`, if its rows are packed.
        owner, module, outer: See the module.
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
    refused: list[Tensor] = []  # noqa: RUF012 - of notes that are not read
    owner: Owner | None = None
    module: nn.Module | None = None
    outer: "ForwardInputs | None" = None
    masks: PassMasks = PassMasks()
    packed: Any = None


class ModelCall:
    """Inputs of a call to the model with its head, as in `ForwardInputs`.

    Attributes:
        keep: The call's `logits_to_keep`: None, a number of last positions, or an index of positions.
        refused: Output of `refusal` about the next tokens, at most one entry.
        taken: Not empty after the backbone has read it.
        packed: The backbone was given packed rows.
        owner, module, outer: See the module.
    """

    def __init__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        keep: Any = None,
        owner: Any = None,
        module: nn.Module | None = None,
        outer: "ModelCall | None" = None,
    ) -> None:
        self.input_ids, self.attention_mask, self.keep = input_ids, attention_mask, keep
        self.wanted = keep if isinstance(keep, int) and keep > 0 else None
        self.owner, self.module, self.outer = owner, module, outer
        self.refused: list[Tensor] = []
        self.taken: list[bool] = []
        self.packed = False


OUTSIDE = (
    "A guarded decoder layer was called outside of its model's forward pass, where the guardrail cannot see the "
    "attention mask. Call the model, or remove the guardrail with `unload()`."
)


def current_inputs(batch: int, seq: int, guard: Guard, index: int) -> ForwardInputs:
    """Return the notes of the running forward pass of `guard`'s backbone.

    Ids of another number of tokens are not those that the layer sees, and are dropped.

    Args:
        batch, seq (int): Size of the layer's input `[batch, seq, d_in]`.
        guard (Guard): The guarded layer.
        index (int): 0-based index of the decoder layer.

    Raises:
        GuardrailNotReady: If the decoder layer was called outside of its model, where the tokens are unknown, or for
            the second time in a pass.
    """
    inputs: ForwardInputs | None = noted(INPUTS)
    while inputs is not None and (inputs.owner is None or inputs.owner.guards.get(index) is not guard):
        inputs = inputs.outer
    if inputs is None or not is_called(inputs.module):
        raise GuardrailNotReady(OUTSIDE)
    if index in inputs.guarded:
        raise GuardrailNotReady(
            f"Layer {index} ran twice in a pass. A gate judges each token once. Run each guarded layer once, or remove "
            "the guardrail."
        )
    ids = inputs.input_ids
    return inputs if ids is None or ids.shape == (batch, seq) else inputs._replace(input_ids=None)


INPUTS, CALL = "inputs of the backbone", "call of the model"

_NOTES = threading.local()
_CALLING = nn.Module._call_impl.__code__
_COMPILED = os.path.join("torch", "_dynamo", "eval_frame.py")  # calls compiled code (torch 2.8 to 2.13)


class Note(Protocol):
    """Data that a pass leaves for its own hooks.

    Attributes:
        owner: The object whose hooks left it.
        module: The module that is being called.
        outer: The note before it.
    """

    @property
    def owner(self) -> Any: ...

    @property
    def module(self) -> Any: ...

    @property
    def outer(self) -> Any: ...


N = TypeVar("N", bound=Note)


def note(name: str, value: Any) -> None:
    """Leave the note `name`, one of those above. None removes it."""
    setattr(_NOTES, name, value)


def noted(name: str) -> Any:
    """Return the note of that name, or None."""
    return getattr(_NOTES, name, None)


def running(left: N | None, module: nn.Module) -> N | None:
    """Return the first note from `left` outwards whose pass is still running.

    For use at the start of a call of `module`. While code is compiled this is not checked.
    """
    if left is None or torch.compiler.is_compiling():
        return left
    called = _being_called()
    if any(each is module for each in called):
        called.remove(module)  # this call
    found: Any = left
    while found is not None and not any(each is found.module for each in called):
        found = found.outer
    return cast("N | None", found)


def is_called(module: nn.Module | None) -> bool:
    """Return True if this code is part of a call of `module`, with its hooks. True while code is compiled.

    The notes of a pass that Ctrl-C ended are still there, and a direct call of `forward` leaves none of its own. A mark
    that hooks set and remove would stay, too: torch 2.13 runs `always_call` hooks after an `Exception` only.
    """
    if torch.compiler.is_compiling():
        return True
    called = any(frame.f_code is _CALLING and frame.f_locals.get("self") is module for frame in frames())
    return called or _in_compiled_code()


def frames() -> Iterator[FrameType]:
    """Yield the frames of the running code, from the innermost outwards."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def own_note(name: str, owner: Any) -> Any:
    """Return the innermost note of that name that `owner` left, or None."""
    found = noted(name)
    while found is not None and found.owner is not owner:
        found = found.outer
    return found


# torch 2.13 compiles again for a thread in which a note was never set, so the state is that after a call.
for _name in (INPUTS, CALL):
    note(_name, None)


def _in_compiled_code() -> bool:
    """Return True if compiled code runs this, after a graph break: then modules called have no frames."""
    return any(frame.f_code.co_filename.endswith(_COMPILED) for frame in frames())


def _being_called() -> list[Any]:
    """The modules whose call this code is part of."""
    return [frame.f_locals.get("self") for frame in frames() if frame.f_code is _CALLING]
