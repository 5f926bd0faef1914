"""Which tokens of a pass are padding, by the mask that the model was given."""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.masks import kept_by


def mask_of_pass(inputs: ForwardInputs, batch: int, seq: int) -> Tensor | None:
    """`[batch, seq]`, the part of a 2-D attention mask that is about this pass, as given; None without such a mask.

    Raises:
        GuardrailNotReady: the mask does not cover the tokens.
    """
    mask, past = telling_mask(inputs), inputs.past
    if not is_2d(mask) or _takes_in_all(inputs, seq):
        return None
    if not isinstance(past, int):  # a static cache may come with a mask padded to the full length on the right
        index = torch.arange(seq, device=mask.device) + past.to(mask.device)
        if mask.shape[1] == seq:  # of the first pass, or shorter than what was read: there transformers hides the rest
            mask, index = torch.nn.functional.pad(mask, (0, 1)), index.clamp(max=seq)
        chunk = mask.index_select(1, index)
    elif inputs.recurrent or (inputs.stateful and past == 0):  # recurrent layers read the end of the mask
        chunk = mask[:, -seq:]
    else:
        chunk = mask[:, past : past + seq]
    unlike = (
        inputs.stateful and not inputs.recurrent and isinstance(past, int) and past > 0 and mask.shape[1] != past + seq
    )
    if chunk.shape != (batch, seq) or unlike:
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
    mask = telling_mask(inputs)
    if sees_all(inputs, seq) and (mask is None or seq == 1 or inputs.stateful):
        return torch.ones(batch, seq, dtype=torch.bool, device=device)
    return kept_by(mask, inputs.past, batch, seq).to(device)


def sees_all(inputs: ForwardInputs, seq: int) -> bool:
    """Whether the host knows that no token of the pass is padding: there is no mask that could say so, a tensor, or the
    model does not follow it."""
    return _takes_in_all(inputs, seq) or not isinstance(telling_mask(inputs), Tensor)


def _takes_in_all(inputs: ForwardInputs, seq: int) -> bool:
    """Whether recurrent layers read all tokens of the pass whatever the mask says."""
    mask = telling_mask(inputs)
    return inputs.stateful and (
        seq == 1 or (isinstance(mask, Tensor) and mask.ndim == 4 and mask is inputs.attention_mask)
    )


def telling_mask(inputs: ForwardInputs) -> Any:
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


def is_2d(mask: Any) -> TypeGuard[Tensor]:
    return isinstance(mask, Tensor) and mask.ndim == 2
