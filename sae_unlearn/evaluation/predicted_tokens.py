"""Texts as batches of tokens to be predicted."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.padding import right_padded


class PredictedTokens(NamedTuple):
    """A batch of texts, and the positions that predict a token which counts.

    Attributes:
        input_ids: `[batch, seq]`, right-padded.
        kept: `[batch, seq]` bool, False at padding.
        wanted: `[batch, seq]` bool, the positions whose next token is predicted.
        counts: how many of them each row has.
        index: position of each row among the texts.
    """

    input_ids: Tensor
    kept: Tensor
    wanted: Tensor
    counts: list[int]
    index: list[int]  # type: ignore[assignment]  # `tuple.index` is hidden, and nobody looks for it here


def predicted_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, max_length: int
) -> Iterator[PredictedTokens]:
    """The texts in batches, longest first; padding and special tokens are not predicted.

    Raises:
        ValueError: a text has no token to predict.
    """
    rows = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    for batch in predicted_rows(rows, tokenizer.all_special_ids, batch_size):
        if 0 in batch.counts:
            bad = batch.index[batch.counts.index(0)]
            raise ValueError(f"text {bad} ({texts[bad][:40]!r}) has no token to predict; leave it out.")
        yield batch


def predicted_rows(
    rows: Sequence[Sequence[int]], special_ids: Sequence[int], batch_size: int
) -> Iterator[PredictedTokens]:
    """Rows of token ids in batches, longest first; padding and special tokens are not predicted."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    special = torch.tensor(special_ids, dtype=torch.long)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        ids, kept = right_padded([rows[i] for i in index])
        wanted = torch.zeros_like(kept)
        wanted[:, :-1] = kept[:, 1:] & ~torch.isin(ids[:, 1:], special)
        yield PredictedTokens(ids, kept, wanted, wanted.sum(dim=1).tolist(), index)
