"""Reading of a call's masks by kind, once a pass, from which padding, packing and refusals follow.

A call has one mask, or a dict with one for each kind of layers. Each is read as the model's attention reads it
(`backbone.attention_masks`), or refused by name.
"""

from collections.abc import Collection
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.attention_masks import ADDS, TOKENS, UNKNOWN, follows_masks, reading_of
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.runtime.masks import check_kind


RECURRENT = ("linear_attention", "conv")
"""The kinds of layers whose mask is of the pass alone (transformers 5.24, `masking_utils`)."""

CHUNKED = "chunked_attention"


class PassMasks(NamedTuple):
    """The masks of a pass. None are those of a call without a mask.

    Attributes:
        telling (list[Tensor]): The masks that show padding, all that differ, that of full attention first. Empty if
            some attention has none, and so attends to everything.
        kernel (list[tuple]): Each 4-D mask with the tokens of a chunk, None if its attention has no chunks.
        recurrent (list): Masks of recurrent layers, `[batch, seq]` of the pass or None for all of its tokens.
        ignored (bool): Recurrent layers get no mask, because the call's only one is 4-D.
        arithmetic (torch.dtype): The dtype in which kernels add 4-D masks to scores.
    """

    telling: list[Tensor] = []  # noqa: RUF012 - never changed
    kernel: list[tuple[Tensor, int | None]] = []  # noqa: RUF012
    recurrent: list[Tensor | None] = []  # noqa: RUF012
    ignored: bool = False
    arithmetic: torch.dtype = torch.float32


def read_masks(mask: Any, backbone: nn.Module, kinds: Collection[str] | None, batch: int, seq: int) -> PassMasks:
    """Return the masks of a pass by kind.

    Args:
        mask (Any): `attention_mask`, that of the backbone or the 2-D one of the model.
        backbone (nn.Module): The backbone.
        kinds (collection of str or None): Kinds of its layers, see `mask_kinds`; None if they are not known.
        batch, seq (int): Size of the pass.

    Raises:
        GuardrailUnsupported: If the attention reads a mask differently from the gate, or in an unknown way. The error
            names the mask.
    """
    if mask is None:
        return PassMasks()
    config = getattr(backbone, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    if isinstance(mask, dict):
        return _read_kinds(mask, backbone, kinds, implementation, batch, seq)
    if is_2d(mask):  # an attention without a mask function sees everything
        return PassMasks([mask]) if follows_masks(implementation) else PassMasks()
    _check_kernel("attention_mask", mask, implementation, batch, seq)
    return PassMasks([mask], [(mask, None)], [], True, _arithmetic([mask], backbone, implementation))


def _read_kinds(
    masks: dict[str, Any],
    backbone: nn.Module,
    kinds: Collection[str] | None,
    implementation: str | None,
    batch: int,
    seq: int,
) -> PassMasks:
    chunk = getattr(backbone.config, "attention_chunk_size", None)
    attention = [kind for kind in masks if kind not in RECURRENT] or list(masks)
    telling: list[Tensor] = []
    kernel: list[tuple[Tensor, int | None]] = []
    whole = False
    for kind in sorted(attention, key=lambda kind: kind != "full_attention"):
        mask, name = masks[kind], f"attention_mask[{kind!r}]"
        if kinds is not None and kind not in kinds:
            raise GuardrailUnsupported(
                f"{name}: expected masks of the model's layers, {sorted(kinds)}, got another. Leave it out."
            )
        if mask is None:
            whole = True
            continue
        if is_2d(mask):
            if kind not in RECURRENT and reading_of(implementation) != TOKENS:
                raise GuardrailUnsupported(
                    f"{name}: expected a 4-D mask with {implementation} attention, got a 2-D one. Pass a 2-D mask as "
                    "attention_mask itself."
                )
        else:
            _check_kernel(name, mask, implementation, batch, seq)
            chunks = chunk if kind == CHUNKED else None
            if not any(mask is other and chunks == size for other, size in kernel):
                kernel.append((mask, chunks))
        if not any(mask is other for other in telling):
            telling.append(mask)
    recurrent = [masks[kind] for kind in RECURRENT if kind in masks]
    for kind in RECURRENT:
        if masks.get(kind) is not None and not is_2d(masks[kind]):
            raise GuardrailUnsupported(
                f"attention_mask[{kind!r}]: expected a 2-D mask of the pass or None, got {_form(masks[kind])}. Pass "
                "such."
            )
    arithmetic = _arithmetic([mask for mask, _ in kernel], backbone, implementation)
    return PassMasks([] if whole else telling, kernel, recurrent, False, arithmetic)


def _check_kernel(name: str, mask: Any, implementation: str | None, batch: int, seq: int) -> None:
    check_kind(name, mask, batch, seq)
    reading = reading_of(implementation)
    if reading == ADDS and mask.dtype == torch.bool:
        raise GuardrailUnsupported(
            f"{name}: expected numbers to add with {implementation} attention, got bool, which it adds as 0 and 1. "
            "Pass a float mask."
        )
    if reading in (TOKENS, UNKNOWN):
        raise GuardrailUnsupported(
            f"{name}: expected a 2-D mask with {implementation} attention, got {_form(mask)}, which "
            f"{'it does not read' if reading == TOKENS else 'it may read in any way'}. Pass a 2-D mask."
        )


def _arithmetic(masks: list[Tensor], backbone: nn.Module, implementation: str | None) -> torch.dtype:
    """Return the dtype of scores plus mask.

    Eager attention adds in that of its operands, others in float32 at least. `torch.promote_types`, an operator at each
    decoded token, is not used: of two floating dtypes the sum is float64 or float32.
    """
    added = {mask.dtype for mask in masks if mask.dtype != torch.bool}
    weight = next(backbone.parameters(), None) if added else None
    if weight is None or not weight.dtype.is_floating_point:
        return torch.float32
    added.add(weight.dtype)
    if implementation == "eager" and len(added) == 1:
        return weight.dtype
    return torch.float64 if torch.float64 in added else torch.float32


def is_2d(mask: Any) -> TypeGuard[Tensor]:
    return isinstance(mask, Tensor) and mask.ndim == 2


def _form(mask: Any) -> str:
    return f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
