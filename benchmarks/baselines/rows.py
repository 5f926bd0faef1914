"""What the baselines train on: questions with answers, or plain text, as token ids with the places that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.errors import UnlearnError


class TextRow(Protocol):
    """A question and its answer, or, where the answer is empty, plain text."""

    prompt: str
    answer: str


class Batch(NamedTuple):
    """Rows as tensors.

    Attributes:
        ids: `[rows, seq]`, padded on the right.
        mask: `[rows, seq]` bool, False at padding.
        predicts: `[rows, seq]` bool, True where the next token is scored: the answer's tokens, or all of a text's.
    """

    ids: Tensor
    mask: Tensor
    predicts: Tensor

    @property
    def targets(self) -> Tensor:
        """`[n]`: the scored tokens, row by row, in the order of `scored_logits`."""
        return self.ids[:, 1:][self.predicts[:, :-1]]

    @property
    def row(self) -> Tensor:
        """`[n]`: the row of each scored token."""
        return self.predicts.nonzero()[:, 0]


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TextRow], max_length: int = 256) -> Batch:
    """Rows as `prompt answer`, special tokens included, cut at `max_length` tokens.

    A special token in the text itself, as WikiText's `<unk>` is one to some tokenizers, is scored like others;
    `row_losses` leaves such tokens out, so the two may differ on the same text (see `content_rows`).

    Raises:
        ValueError: nothing is left to score in a row.
    """
    texts = [f"{row.prompt} {row.answer}" if row.answer else row.prompt for row in rows]
    encoded = tokenizer(texts, return_offsets_mapping=True, truncation=True, max_length=max_length)
    ids, mask = right_padded(encoded["input_ids"])
    predicts = torch.zeros_like(mask)
    for i, (row, offsets) in enumerate(zip(rows, encoded["offset_mapping"], strict=True)):
        start = len(row.prompt) if row.answer else 0
        scored = [last > start and last > first for first, last in offsets]
        predicts[i, : len(scored) - 1] = torch.tensor(scored[1:], dtype=torch.bool)
        if not predicts[i].any():
            raise UnlearnError(f"max_length={max_length}: expected a scored token of {texts[i]!r}. Use longer rows.")
    return Batch(ids, mask, predicts)


def scored_logits(model: nn.Module, batch: Batch) -> Tensor:
    """`[n, vocabulary]` float32: the logits that predict the scored tokens; the head is run nowhere else."""
    return wanted_logits(model, batch.ids, batch.mask, batch.predicts)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """`-1/n sum_t log p(x_t | x_<t)` over the batch's scored tokens, in nats: a scalar."""
    logits = scored_logits(model, batch)
    return nn.functional.cross_entropy(logits, batch.targets.to(logits.device))


def log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """`log p(y | x)`, the sum over each row's scored tokens: `[rows]`."""
    logits = scored_logits(model, batch)
    losses = nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="none")
    zeros = torch.zeros(len(batch.ids), dtype=losses.dtype, device=losses.device)
    return -zeros.index_add(0, batch.row.to(losses.device), losses)
