"""Padding and packed texts in the mask of an attention kernel.

Such a mask is `[batch or 1, heads or 1, rows or 1, keys]`, bool or additive. A row is a query token, a column a key
token. A key column is padding if no query row of any head can attend to it. An additive mask `m` is read as softmax
reads it, which ignores a constant: relative to the largest value of its row,

    row q attends to column k  iff  m[q, k] - max_k m[q, k] > -1000  and  max_k m[q, k] > lowest

A row whose largest value is not above `lowest` attends to nothing (transformers fills the rows of left padding so):
rounding loses the scores that are added to it. That depends on the dtype of the sum, see `lowest`. A pass of several
tokens is refused if a row lies between, and may attend, or lies below and still tells columns apart.

No later query of a single token exists yet. It is padding if it attends to nothing itself. A second test of rows below
`lowest` would cost three operators for each decoded token, and is left out.
"""

from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailUnsupported


FAR = 1e3
"""Columns further than this below the largest value of their row are hidden."""


_SCORE = 32.0
"""Size of a score that is lost below `lowest`."""


def lowest(arithmetic: torch.dtype) -> float:
    """Return the value below which a mask loses the scores that it is added to in a sum of this dtype.

    The spacing of numbers of size x is at least `eps x / 2`; below `-2 * 32 / eps` it exceeds the size of a score,
    -5.4e8 in float32 and -2.9e17 in float64. In float16, whose scores overflow there, it is half of the lowest number.
    For bfloat16 that of float32, in which kernels may add.
    """
    if arithmetic == torch.float16:
        return torch.finfo(arithmetic).min / 2
    return -2 * _SCORE / torch.finfo(torch.float64 if arithmetic == torch.float64 else torch.float32).eps


def kept_by(mask: Tensor, past: int | Tensor, batch: int, seq: int, arithmetic: torch.dtype) -> Tensor:
    """Return the tokens of a pass that are not padding, `[batch, seq]` bool.

    Args:
        mask (Tensor): As in this module. Its last columns are the tokens of the pass, unless it is longer than the
            tokens read so far (static caches).
        past (int or Tensor): Tokens in the cache before this pass, an int or a 0-d tensor.
        batch, seq (int): Size of the pass.
        arithmetic (torch.dtype): The dtype of scores plus mask.
    """
    if seq == 1:
        every = (1, 2, 3)
        sees = mask.any(dim=every) if mask.dtype == torch.bool else mask.amax(dim=every) > lowest(arithmetic)
        return sees[:, None].expand(batch, 1)
    return _own_columns(_visible(mask, arithmetic), past, seq).any(dim=(1, 2)).expand(batch, seq)


def shown_by(mask: Tensor, past: int | Tensor, seq: int, arithmetic: torch.dtype) -> tuple[Tensor, int | Tensor]:
    """Return the columns to which some row or head attends, and the first own column.

    The columns are `[batch or 1, keys]` bool. The first column of the pass is an int or a 0-d tensor. The column
    before it is the last token of the past.
    """
    return _visible(mask, arithmetic).any(dim=2).any(dim=1), _start_of(past, mask.shape[3], seq)


def why_not_one_text(
    mask: Tensor, past: int | Tensor, batch: int, seq: int, arithmetic: torch.dtype, chunk: int | None = None
) -> str | None:
    """Return why the tokens of the pass may not be one text per row, by the mask, or None.

    In one text every token that is not padding attends to itself and the one before it, even with a sliding window,
    and so step by step to all of them. In packed documents the first token of each attends to none before it. With
    chunked attention neither does the first token of each chunk, counted from the first column that the row shows. It
    waits for the device.

    Args:
        mask, past, batch, seq, arithmetic: As in `kept_by`.
        chunk (int, *optional*): Tokens of a chunk of the attention that reads the mask.
    """
    visible = _visible(mask, arithmetic)
    own = _own_columns(visible, past, seq).any(dim=1).expand(batch, seq, seq)
    kept = kept_by(mask, past, batch, seq, arithmetic)
    here = torch.arange(seq, device=mask.device).expand(batch, seq)
    last_kept = here.where(kept, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(last_kept[:, :-1], (1, 0), value=-1)
    sees_before = own.gather(2, before.clamp(min=0)[..., None])[..., 0] | (before < 0)
    if chunk is not None:
        first = visible.any(dim=(1, 2)).long().argmax(dim=1, keepdim=True)
        start = torch.as_tensor(_start_of(past, mask.shape[3], seq)).to(mask.device)
        sees_before = sees_before | ((here + start - first) % chunk == 0)
    sees_itself = own.gather(2, here[..., None])[..., 0]
    torn = kept & ~(sees_before & sees_itself)
    unclear = torch.zeros_like(torn)
    if mask.dtype != torch.bool:
        top = mask.amax(dim=-1)
        apart = mask.amin(dim=-1) < top
        unclear = top.isfinite() & (top < -FAR) & ((top > lowest(arithmetic)) | apart)
    if not bool(torn.any() | unclear.any()):
        return None
    if bool(unclear.any()):
        return "the attention mask has rows of low numbers, which may attend to everything or nothing"
    return "by the attention mask a token does not attend to itself, or to the one before it"


def _visible(mask: Tensor, arithmetic: torch.dtype) -> Tensor:
    """Columns to which each row attends, bool of the shape of `mask`."""
    if mask.dtype == torch.bool:
        return mask
    top = mask.amax(dim=-1, keepdim=True)
    # not `mask > top - FAR`, which rounding makes `mask > top` for large numbers
    return (mask - top > -FAR) & (top > lowest(arithmetic))


def _own_columns(visible: Tensor, past: int | Tensor, seq: int) -> Tensor:
    """The columns of `visible [..., keys]` that are the tokens of the pass, `[..., seq]`."""
    start = _start_of(past, visible.shape[3], seq)
    if isinstance(start, int):
        return visible[..., start : start + seq]
    return visible.index_select(3, torch.arange(seq, device=visible.device) + start.to(visible.device))


def _start_of(past: Any, keys: int, seq: int) -> Any:
    """The first column of the pass: less than `past` if a sliding cache has dropped the oldest."""
    return min(past, keys - seq) if isinstance(past, int) else past.clamp(max=keys - seq)


def check_kind(name: str, mask: Any, batch: int, seq: int) -> None:
    """Raise unless a mask is 4-D, bool or float, and of this pass.

    Raises:
        GuardrailUnsupported: If it is of another kind, or of other tokens.
    """
    if isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point()) and mask.ndim == 4:
        rows, _, queries, keys = mask.shape
        if rows in (1, batch) and queries in (1, seq) and keys >= seq:
            return
    found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise GuardrailUnsupported(
        f"{name}: expected a mask that shows the padding of {batch} rows of {seq} tokens, got {found}. Pass a "
        "2-D mask of 0 and 1, or a 4-D one that is bool or float."
    )
