"""Texts as batches of tokens to be predicted."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import filled, is_mine
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

    def row_means(self, values: Tensor) -> Tensor:
        """The mean of each row's values, `[tokens that count]` row after row -> `[batch]` float64 on the CPU."""
        return torch.stack([row.mean() for row in values.double().cpu().split(self.counts)])


def predicted_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, max_length: int
) -> Iterator[PredictedTokens]:
    """The texts in batches, longest first; padding and special tokens are not predicted.

    Raises:
        ValueError: a text has no token to predict.
    """
    rows = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    special = set(tokenizer.all_special_ids)
    bad = next((i for i, row in enumerate(rows) if special.issuperset(row[1:])), None)
    if bad is not None:  # before any batch is run: the shortest texts come last
        raise ValueError(f"text {bad} ({texts[bad][:40]!r}) has no token to predict; leave it out.")
    yield from predicted_rows(rows, tokenizer.all_special_ids, batch_size)


def measured_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    max_length: int,
    measure: Callable[[PredictedTokens], Tensor],
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """What `measure` gives of each row of a batch, of all texts in their own order, `[n]` float64.

    Args:
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch; see `backbone.processes`.

    Raises:
        ValueError: a text has no token to predict.
    """
    found = torch.zeros(len(texts), dtype=torch.float64)
    mine: list[int] = []
    with tqdm(total=len(texts), desc=progress, unit="text", disable=progress is None) as bar:
        for number, batch in enumerate(predicted_tokens(tokenizer, texts, batch_size, max_length)):
            if is_mine(number) or not shared:
                found[batch.index] = measure(batch)
                mine += batch.index
            bar.update(len(batch.index))
    return filled(found, mine) if shared else found


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
