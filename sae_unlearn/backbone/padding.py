"""Rows of token ids as tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids `[batch, seq]`, zeros at padding, and a bool mask, True at tokens; seq is at least 1."""
    ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids, mask


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that pads. GPT-2 and others have none of their own: it is the one that ends a sequence then, or 0."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None)
