"""What an attention kernel's own mask says of a pass: which tokens are padding, and whether the others are one text.

Such a mask is `[batch or 1, heads or 1, rows or 1, keys]`, bool or additive. A row is a token that looks, a column one
that is looked at. Padding is a column that no row and no head sees: what somebody sees counts, whoever it is. An
additive mask is read relative to the largest value of its row, since softmax does not see a constant; a row in which
even that is as good as minus infinity sees nothing (transformers fills the rows of padding on the left so).

A single token has nobody to see it yet. It is padding if it itself sees nothing.
"""

from typing import Any

import torch
from torch import Tensor


FAR = 1e3
"""What lies further than this below the largest value of its row is hidden."""


def kept_by(mask: Any, past: int | Tensor, batch: int, seq: int) -> Tensor:
    """`[batch, seq]` bool: the tokens of a pass that are not padding.

    Args:
        mask: as in this module's first lines. Its last columns are the tokens of the pass, unless it is longer than
            what has been read (static caches).
        past: tokens in the cache before this pass, an int or a 0-d tensor.

    Raises:
        NotImplementedError: the mask is of another kind, or of other tokens.
    """
    _check_kind(mask, batch, seq)
    if seq == 1:
        every = (1, 2, 3)
        sees = mask.any(dim=every) if mask.dtype == torch.bool else mask.amax(dim=every) > _nothing(mask.dtype)
        return sees[:, None].expand(batch, 1)
    return _own_columns(_visible(mask), past, seq).any(dim=(1, 2)).expand(batch, seq)


def shown_by(mask: Any, past: int | Tensor, batch: int, seq: int) -> tuple[Tensor, int | Tensor]:
    """`[batch or 1, keys]` bool, the columns that some row or head of a mask sees; and the first of the pass's own, an
    int or a 0-d tensor. The one before it is the last token of the past.

    Raises:
        NotImplementedError: as in `kept_by`.
    """
    _check_kind(mask, batch, seq)
    return _visible(mask).any(dim=2).any(dim=1), _start_of(past, mask.shape[3], seq)


def why_not_one_text(mask: Tensor, past: int | Tensor, batch: int, seq: int) -> str | None:
    """What is wrong with a mask by which the tokens of the pass are not one text per row, or which does not tell
    whether they are; None where nothing is. It waits for the device.

    In one text every token that is not padding sees itself and the one before it, be it through a sliding window, and
    so by and by all of them. In documents that are packed the first of each sees none before it.

    Raises:
        NotImplementedError: as in `kept_by`.
    """
    kept = kept_by(mask, past, batch, seq)
    own = _own_columns(_visible(mask), past, seq).any(dim=1).expand(batch, seq, seq)
    here = torch.arange(seq, device=mask.device).expand(batch, seq)
    last_kept = here.where(kept, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(last_kept[:, :-1], (1, 0), value=-1)
    sees_before = own.gather(2, before.clamp(min=0)[..., None])[..., 0] | (before < 0)
    sees_itself = own.gather(2, here[..., None])[..., 0]
    torn = kept & ~(sees_before & sees_itself)
    unclear = torch.zeros_like(torn)
    if mask.dtype != torch.bool:
        top = mask.amax(dim=-1)
        unclear = (top > _nothing(mask.dtype)) & (top < -FAR)
    if not bool(torn.any() | unclear.any()):
        return None
    if bool(unclear.any()):
        return "the attention mask has rows of low numbers, which may see everything or nothing"
    return "by the attention mask a token does not see itself, or the one before it"


def _visible(mask: Tensor) -> Tensor:
    """Bool of the shape of `mask`: which columns each row sees."""
    if mask.dtype == torch.bool:
        return mask
    top = mask.amax(dim=-1, keepdim=True)
    return (mask > top - FAR) & (top > _nothing(mask.dtype))


def _nothing(dtype: torch.dtype) -> float:
    """A row whose largest value is not above this sees nothing: what is added to it is lost in the rounding."""
    return max(torch.finfo(dtype).min / 2, -5e8)


def _own_columns(visible: Tensor, past: int | Tensor, seq: int) -> Tensor:
    """`[..., seq]`, those columns of `visible [..., keys]` that are the tokens of the pass."""
    start = _start_of(past, visible.shape[3], seq)
    if isinstance(start, int):
        return visible[..., start : start + seq]
    return visible.index_select(3, torch.arange(seq, device=visible.device) + start.to(visible.device))


def _start_of(past: Any, keys: int, seq: int) -> Any:
    """The first column of the pass: less than `past` where a sliding cache has dropped the oldest."""
    return min(past, keys - seq) if isinstance(past, int) else past.clamp(max=keys - seq)


def _check_kind(mask: Any, batch: int, seq: int) -> None:
    if isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point()) and mask.ndim == 4:
        rows, _, queries, keys = mask.shape
        if rows in (1, batch) and queries in (1, seq) and keys >= seq:
            return
    found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise NotImplementedError(
        f"The attention mask is {found}, in which a guardrail cannot tell padding from text, for {batch} rows of {seq} "
        "tokens. Pass a 2-D mask of 0 and 1, or a 4-D one that is bool or float."
    )
