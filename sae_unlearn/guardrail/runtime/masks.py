"""Padding and packed texts in the mask of an attention kernel.

Such a mask is `[batch or 1, heads or 1, rows or 1, keys]`, bool or additive. A row is a query token, a column a key
token. A key column is padding if no query row of any head can attend to it. An additive mask is read relative to the
largest value of its row, since softmax ignores a constant. A row whose largest value is practically minus infinity
attends to nothing (transformers fills the rows of left padding so).

No later query of a single token exists yet. It is padding if it attends to nothing itself.
"""

from typing import Any

import torch
from torch import Tensor


FAR = 1e3
"""Columns further than this below the largest value of their row are hidden."""


def kept_by(mask: Any, past: int | Tensor, batch: int, seq: int) -> Tensor:
    """Return the tokens of a pass that are not padding, `[batch, seq]` bool.

    Args:
        mask: As in this module. Its last columns are the tokens of the pass, unless it is longer than the tokens read
            so far (static caches).
        past (int or Tensor): Tokens in the cache before this pass, an int or a 0-d tensor.
        batch, seq (int): Size of the pass.

    Raises:
        NotImplementedError: If the mask is of another kind, or of other tokens.
    """
    _check_kind(mask, batch, seq)
    if seq == 1:
        every = (1, 2, 3)
        sees = mask.any(dim=every) if mask.dtype == torch.bool else mask.amax(dim=every) > _nothing(mask.dtype)
        return sees[:, None].expand(batch, 1)
    return _own_columns(_visible(mask), past, seq).any(dim=(1, 2)).expand(batch, seq)


def shown_by(mask: Any, past: int | Tensor, batch: int, seq: int) -> tuple[Tensor, int | Tensor]:
    """Return the columns to which some row or head attends, and the first own column.

    The columns are `[batch or 1, keys]` bool. The first column of the pass is an int or a 0-d tensor. The column
    before it is the last token of the past.

    Raises:
        NotImplementedError: As in `kept_by`.
    """
    _check_kind(mask, batch, seq)
    return _visible(mask).any(dim=2).any(dim=1), _start_of(past, mask.shape[3], seq)


def why_not_one_text(mask: Tensor, past: int | Tensor, batch: int, seq: int) -> str | None:
    """Return why the tokens of the pass may not be one text per row, by the mask, or None.

    In one text every token that is not padding attends to itself and the one before it, even with a sliding window,
    and so step by step to all of them. In packed documents the first token of each attends to none before it. It waits
    for the device.

    Raises:
        NotImplementedError: As in `kept_by`.
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
        return "the attention mask has rows of low numbers, which may attend to everything or nothing"
    return "by the attention mask a token does not attend to itself, or to the one before it"


def _visible(mask: Tensor) -> Tensor:
    """Columns to which each row attends, bool of the shape of `mask`."""
    if mask.dtype == torch.bool:
        return mask
    top = mask.amax(dim=-1, keepdim=True)
    return (mask > top - FAR) & (top > _nothing(mask.dtype))


def _nothing(dtype: torch.dtype) -> float:
    """A row whose largest value is not above this attends to nothing: rounding loses what is added to it."""
    return max(torch.finfo(dtype).min / 2, -5e8)


def _own_columns(visible: Tensor, past: int | Tensor, seq: int) -> Tensor:
    """The columns of `visible [..., keys]` that are the tokens of the pass, `[..., seq]`."""
    start = _start_of(past, visible.shape[3], seq)
    if isinstance(start, int):
        return visible[..., start : start + seq]
    return visible.index_select(3, torch.arange(seq, device=visible.device) + start.to(visible.device))


def _start_of(past: Any, keys: int, seq: int) -> Any:
    """The first column of the pass: less than `past` if a sliding cache has dropped the oldest."""
    return min(past, keys - seq) if isinstance(past, int) else past.clamp(max=keys - seq)


def _check_kind(mask: Any, batch: int, seq: int) -> None:
    if isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point()) and mask.ndim == 4:
        rows, _, queries, keys = mask.shape
        if rows in (1, batch) and queries in (1, seq) and keys >= seq:
            return
    found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise NotImplementedError(
        f"attention_mask: expected a mask that shows the padding of {batch} rows of {seq} tokens, got {found}. Pass a "
        "2-D mask of 0 and 1, or a 4-D one that is bool or float."
    )
