"""What the hooks of a running call tell each other, each thread by itself.

Thread-local and not a context variable: `torch.compile` can trace it, and where a graph breaks between two hooks, code
that was compiled finds the notes of its own thread's call again. A forward pass runs in one thread from its beginning
to its end, and nothing else runs in it meanwhile.
"""

import threading
from typing import Any, NamedTuple

from torch import Tensor
from transformers import Cache

from sae_unlearn.errors import GuardrailNotReady


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


class ModelCall(NamedTuple):
    """What the model with its head was called with, as in `ForwardInputs`."""

    input_ids: Tensor | None = None
    attention_mask: Any = None
    wanted: int | None = None


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


INPUTS, CALL, NEXT = "inputs of the backbone", "call of the model", "tokens that have to come next"

_NOTES = threading.local()


def note(name: str, value: Any) -> None:
    """Leave the note `name`, one of those above; None takes it away."""
    setattr(_NOTES, name, value)


def noted(name: str) -> Any:
    """The note of that name; None if there is none."""
    return getattr(_NOTES, name, None)
