"""Detection of several texts in one row, which the gate would treat as one: judged or refused.

Packed texts are passed to a model by special arguments, by an attention kernel's mask, by numbers in a 2-D mask, or by
its positions. Positions are `[batch or 1, seq]`, or `[seq]`. Models with images take `[axes, batch or 1, seq]`, in
which transformers reads the texts from the first axis, unless there are only the three axes of the rotary embedding,
from which it reads none. Positions of any other shape are refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.masks import why_not_one_text
from sae_unlearn.guardrail.runtime.pass_mask import kept_tokens, mask_of_pass


PACKING = (
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "cu_seqlens",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seq_idx",
    "block_sequence_ids",
)
"""Arguments that give the places of packed texts."""

ROTARY_AXES = 3


def packing_argument(given: Mapping[str, Any]) -> str | None:
    """Return the argument of a call that says that texts are packed, or None."""
    for name in PACKING:
        if given.get(name) is not None:
            return name
    return None


def refuse_argument(name: str) -> None:
    """Raise for the result of `packing_argument`.

    Raises:
        GuardrailUnsupported: Always.
    """
    raise GuardrailUnsupported(
        f"{name}: expected None, since the model does not separate these packed sequences. Pass position_ids that "
        "restart with each text, no mask and use_cache=False; or padded batches."
    )


def text_positions(positions: Any, batch: int, seq: int) -> Tensor | None:
    """Return the positions from which a model could read where texts begin, `[batch or 1, seq]`, or None.

    Raises:
        GuardrailUnsupported: If their shape is unknown.
    """
    if positions is None:
        return None
    if isinstance(positions, Tensor):
        shape = positions.shape
        if shape == (seq,):
            return positions[None]
        if len(shape) in (2, 3) and shape[-2] in (1, batch) and shape[-1] == seq:
            if len(shape) == 2:
                return positions
            if shape[0] >= ROTARY_AXES:
                return None if shape[0] == ROTARY_AXES else positions[0]
    found = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
    raise GuardrailUnsupported(
        f"position_ids={found}: expected [batch, seq] or [axes, batch, seq] of {batch} rows and {seq} tokens, since "
        "a guardrail cannot separate packed sequences. Pass such, or none."
    )


def why_packed(positions: Tensor, kept: Tensor | None, chunk: Tensor | None) -> str | None:
    """Return a sign of several texts in a row, in the positions or a 2-D mask, or None.

    It waits for the device.

    Args:
        positions (Tensor): `[batch or 1, seq]`.
        kept (Tensor or None): `[batch, seq]` bool, the tokens that are not padding. None without a mask.
        chunk (Tensor or None): `[batch, seq]`, the 2-D mask of the pass.
    """
    if kept is None:  # then transformers treats every gap as the start of another text
        torn = bool((positions.diff(dim=1) != 1).any())
        return "position_ids do not rise by one from token to token, without an attention mask" if torn else None
    shown = positions.masked_fill(~kept, positions.amin())  # those of padding are arbitrary
    fall = (kept & (shown < shown.cummax(dim=1).values)).any()
    numbered = torch.zeros_like(fall) if chunk is None else (chunk != chunk.bool()).any().to(fall.device)
    if not bool(fall | numbered):
        return None
    return "the attention mask holds numbers other than 0 and 1" if bool(numbered) else "position_ids fall within a row"


def refuse_packed(shape: tuple[int, int], inputs: ForwardInputs) -> None:
    """Refuse several texts in a row.

    Compiled code is not checked, and with a 2-D mask only the positions are: a check waits for the device.
    """
    positions = text_positions(inputs.position_ids, *shape)
    if torch.compiler.is_compiling():
        return
    masks = inputs.masks
    why = None
    for mask, chunk in masks.kernel:
        why = why or why_not_one_text(mask, inputs.past, *shape, masks.arithmetic, chunk)
    if why is None and positions is not None:
        kept = None if not masks.telling else kept_tokens(inputs, *shape, positions.device)
        why = why_packed(positions, kept, mask_of_pass(inputs, *shape))
    if why is not None:
        raise GuardrailUnsupported(
            f"These may be packed sequences, which the model does not separate: {why}. Pass one text per row, rising "
            "position_ids and a 2-D mask of 0 and 1; or several without a mask, with use_cache=False."
        )


def shape_of(given: dict[str, Any]) -> tuple[int, int]:
    """Return batch and tokens of a call of the backbone.

    Raises:
        GuardrailUnsupported: If they are unknown.
    """
    for name in ("input_ids", "inputs_embeds", "hidden_states"):  # the last one in backbones such as BERT's
        tokens = given.get(name)
        if isinstance(tokens, Tensor) and tokens.ndim >= 2:
            return tokens.shape[0], tokens.shape[1]
    raise GuardrailUnsupported(
        "input_ids, inputs_embeds: expected one of known shape, which shows where texts begin. Pass one of them, "
        "[batch, seq] or [batch, seq, width]."
    )
