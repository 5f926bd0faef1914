"""Padding of a pass, from the mask that the model received."""

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.mask_reading import is_2d
from sae_unlearn.guardrail.runtime.masks import kept_by


def mask_of_pass(inputs: ForwardInputs, batch: int, seq: int) -> Tensor | None:
    """Return the part of a 2-D attention mask for this pass, `[batch, seq]`, or None without such a mask.

    Of several 2-D masks, one for each kind of layer, it is the largest number of each token.

    Raises:
        GuardrailNotReady: If a mask does not cover the tokens.
    """
    masks = inputs.masks.telling
    if not masks or inputs.masks.kernel or _takes_in_all(inputs, seq):
        return None
    chunks = [_chunk(mask, inputs, batch, seq) for mask in masks]
    chunks += [mask for mask in inputs.masks.recurrent if mask is not None]
    return chunks[0] if len(chunks) == 1 else torch.stack(chunks).amax(dim=0)


def _chunk(mask: Tensor, inputs: ForwardInputs, batch: int, seq: int) -> Tensor:
    past = inputs.past
    if not isinstance(past, int):
        # The mask may be padded to the static cache's full length, or end before the tokens of the pass: transformers
        # hides what is beyond its end (5.24, `prepare_padding_mask`).
        index = past.to(mask.device).reshape(1)
        if seq > 1:
            index = index + torch.arange(seq, device=mask.device)
        chunk = torch.nn.functional.pad(mask, (0, 1)).index_select(1, index.clamp(max=mask.shape[1]))
    elif inputs.recurrent or (inputs.stateful and past == 0):  # recurrent layers read the end of the mask
        chunk = mask[:, -seq:]
    else:
        chunk = mask[:, past : past + seq]
    unlike = (
        inputs.stateful and not inputs.recurrent and isinstance(past, int) and past > 0 and mask.shape[1] != past + seq
    )
    if chunk.shape != (batch, seq) or unlike:
        raise GuardrailNotReady(
            f"attention_mask: expected one for the {seq} tokens after {past} cached ones of a batch of {batch}, "
            f"got shape {tuple(mask.shape)}. Pass the mask of the whole sequence."
        )
    return chunk


def kept_tokens(inputs: ForwardInputs, batch: int, seq: int, device: torch.device) -> Tensor:
    """Return the tokens of this pass that are not padding, `[batch, seq]` bool.

    They are those that some layer's mask shows.

    Raises:
        GuardrailNotReady: If a 2-D mask does not cover the tokens.
    """
    masks = inputs.masks.telling
    if not masks or (sees_all(inputs, seq) and (seq == 1 or inputs.stateful)):
        return torch.ones(batch, seq, dtype=torch.bool, device=device)
    kept: Tensor | None = None
    for mask in masks:
        if is_2d(mask):
            own = _chunk(mask, inputs, batch, seq).bool()
        else:
            own = kept_by(mask, inputs.past, batch, seq, inputs.masks.arithmetic)
        kept = own.to(device) if kept is None else kept | own.to(device)
    for each in inputs.masks.recurrent:
        if each is not None:
            kept = each.to(device).bool() if kept is None else kept | each.to(device).bool()
    assert kept is not None
    return kept


def sees_all(inputs: ForwardInputs, seq: int) -> bool:
    """Return True if the host knows that no token of the pass is padding.

    No mask could show padding, or the model does not follow it.
    """
    return not inputs.masks.telling or _takes_in_all(inputs, seq)


def _takes_in_all(inputs: ForwardInputs, seq: int) -> bool:
    """True if recurrent layers read all tokens of the pass whatever the mask says."""
    masks = inputs.masks
    return inputs.stateful and (seq == 1 or masks.ignored or any(own is None for own in masks.recurrent))
