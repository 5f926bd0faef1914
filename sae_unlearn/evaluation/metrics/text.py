"""Texts as batches of tokens to be predicted.

Cross-entropy of texts.

How far a tuned model's predictions have moved from its base.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import filled, is_mine
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.evaluation.base_model import adapters_off


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


@torch.no_grad()
def row_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 4,
    max_length: int = 512,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Mean cross-entropy per token of each text, `[n]` float64, in nats.

    A text is given to the model whole, as the tokenizer makes it; padding and special tokens are not predicted. Texts
    are batched by length, and the result is in their own order.

    Args:
        model: any causal language model, with or without adapters.
        batch_size: texts per forward pass; the result does not depend on it, up to rounding.
        max_length: tokens of a text at most; what is longer is cut.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.

    Raises:
        ValueError: a text has no token to predict.
    """
    return measured_rows(
        tokenizer, texts, batch_size, max_length, lambda batch: batch_losses(model, batch), progress, shared
    )


@torch.no_grad()
def batch_losses(model: nn.Module, batch: PredictedTokens) -> Tensor:
    """Mean cross-entropy per predicted token of each row of a batch, `[batch]` float64, in nats; NaN where there is
    none."""
    logits = wanted_logits(model, batch.input_ids, batch.kept, batch.wanted)
    targets = batch.input_ids[:, 1:][batch.wanted[:, :-1]].to(logits.device)
    found = logits.logsumexp(dim=-1) - logits.gather(1, targets[:, None])[:, 0]
    return batch.row_means(found)


_CHUNK = 64  # positions whose distributions are held at once: with 262,144 tokens, 64 MB each in float32


@torch.no_grad()
def row_divergences(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    base: nn.Module | None = None,
    batch_size: int = 4,
    max_length: int = 256,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Mean divergence of the tuned model from its base per predicted token of each text, `[n]` float64, in nats.

        KL(base || tuned) = sum_v p_base(v) (log p_base(v) - log p_tuned(v))

    Args:
        model: the tuned model.
        base: the model to compare with; None takes `model` with its adapters disabled.
        batch_size: texts per forward pass; the result does not depend on it, up to rounding.
        max_length: tokens of a text at most; what is longer is cut.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.

    Raises:
        ValueError: no `base`, and `model` is no PeftModel; or a text has no token to predict.
    """
    if base is None and not isinstance(model, PeftModel):
        raise ValueError(
            f"{type(model).__name__} has no adapters that could be disabled; pass the base model as base=."
        )

    def divergences(batch: PredictedTokens) -> Tensor:
        tokens = (batch.input_ids, batch.kept, batch.wanted)
        with adapters_off(model) if base is None else nullcontext():
            before = wanted_logits(model if base is None else base, *tokens)
        pairs = zip(before.split(_CHUNK), wanted_logits(model, *tokens).split(_CHUNK), strict=True)
        return batch.row_means(torch.cat([_divergence(*pair) for pair in pairs]))

    return measured_rows(tokenizer, texts, batch_size, max_length, divergences, progress, shared)


def _divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """`[n]` from logits `[n, vocabulary]`."""
    base, tuned = base.log_softmax(dim=-1), tuned.to(base.device).log_softmax(dim=-1)
    return (base.exp() * (base - tuned)).sum(dim=-1)
