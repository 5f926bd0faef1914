"""Cross-entropy of texts, and the divergence of a tuned model from its base on them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.backbone.distributed import filled, is_mine
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.checks import check_all
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.evaluation import MeasurementConfig


class PredictedTokens(NamedTuple):
    """A batch of texts, and the positions whose next token is predicted.

    Attributes:
        input_ids (Tensor): `[batch, seq]`, right-padded.
        kept (Tensor): `[batch, seq]` bool, False at padding.
        wanted (Tensor): `[batch, seq]` bool, the positions whose next token is predicted.
        counts (Tensor): `[batch]`, their number in each row.
        index (list of int): Index of each row among the texts.
    """

    input_ids: Tensor
    kept: Tensor
    wanted: Tensor
    counts: list[int]
    index: list[int]  # type: ignore[assignment]  # hides `tuple.index`, which is not used

    def row_means(self, values: Tensor) -> Tensor:
        """Return the mean of each row's values.

        Args:
            values (Tensor): `[predicted tokens]`, row after row.

        Returns:
            Tensor: `[batch]` float64 on the CPU.
        """
        return torch.stack([row.mean() for row in values.double().cpu().split(self.counts)])


def predicted_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, max_length: int
) -> Iterator[PredictedTokens]:
    """Yield the texts in batches, longest first. Padding and special tokens are not predicted.

    Raises:
        UnlearnError: If a text has no token to predict.
    """
    check_all(texts, str, "texts")
    rows = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    special = set(tokenizer.all_special_ids)
    bad = next((i for i, row in enumerate(rows) if special.issuperset(row[1:])), None)
    if bad is not None:  # before the first batch, since the shortest texts come last
        raise UnlearnError(f"texts[{bad}]={texts[bad][:40]!r}: expected at least one token to predict. Omit it.")
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
    """Return the values that `measure` gives for all texts, in their order, `[n]` float64.

    Args:
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        texts (sequence of str): The texts.
        batch_size (int): Texts per batch.
        max_length (int): Tokens of a text at most; longer ones are cut.
        measure (callable): Function of a `PredictedTokens` batch that returns `[batch]`.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Raises:
        UnlearnError: If a text has no token to predict.
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
    """Yield rows of token ids in batches, longest first. Padding and special tokens are not predicted."""
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
    *,
    batch_size: int = MeasurementConfig.batch_size,
    max_length: int = MeasurementConfig.max_length,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Return the mean cross-entropy per token of each text, `[n]` float64, in nats.

    The model gets the whole text as the tokenizer encodes it. Padding and special tokens are not predicted. Texts are
    batched by length, and the result is in their own order.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        texts (sequence of str): The texts.
        batch_size (int, *optional*, defaults to 8): Texts per forward pass. It changes only rounding.
        max_length (int, *optional*, defaults to 512): Tokens of a text at most; longer ones are cut.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Raises:
        UnlearnError: If a text has no token to predict.
    """
    return measured_rows(
        tokenizer, texts, batch_size, max_length, lambda batch: batch_losses(model, batch), progress, shared
    )


@torch.no_grad()
def batch_losses(model: nn.Module, batch: PredictedTokens) -> Tensor:
    """Return the mean cross-entropy per predicted token of each row, `[batch]` float64, in nats.

    It is NaN for a row without a predicted token.
    """
    logits = wanted_logits(model, batch.input_ids, batch.kept, batch.wanted)
    targets = batch.input_ids[:, 1:][batch.wanted[:, :-1]].to(logits.device)
    found = logits.logsumexp(dim=-1) - logits.gather(1, targets[:, None])[:, 0]
    return batch.row_means(found)


_CHUNK = 64  # positions with distributions in memory at once: 64 MB each in float32 for 262,144 tokens


@torch.no_grad()
def row_divergences(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    base: nn.Module | None = None,
    batch_size: int = MeasurementConfig.batch_size,
    max_length: int = MeasurementConfig.max_length,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Return the mean divergence of a tuned model from its base per predicted token of each text.

        KL(base || tuned) = sum_v p_base(v) (log p_base(v) - log p_tuned(v))

    Args:
        model (nn.Module): The tuned model.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        texts (sequence of str): The texts.
        base (nn.Module, *optional*): The reference. None disables the adapters of `model`.
        batch_size (int, *optional*, defaults to 8): Texts per forward pass. It changes only rounding.
        max_length (int, *optional*, defaults to 512): Tokens of a text at most; longer ones are cut.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Returns:
        Tensor: `[n]` float64, in nats.

    Raises:
        UnlearnError: If `base` is None and `model` is not a PeftModel, or a text has no token to predict.
    """
    if base is None and not isinstance(model, PeftModel):
        raise UnlearnError(
            f"base=None: expected a PeftModel, whose adapters can be disabled, got {type(model).__name__}. Pass base=."
        )

    def divergences(batch: PredictedTokens) -> Tensor:
        tokens = (batch.input_ids, batch.kept, batch.wanted)
        with adapters_off(model) if base is None else nullcontext():
            before = wanted_logits(model if base is None else base, *tokens)
        pairs = zip(before.split(_CHUNK), wanted_logits(model, *tokens).split(_CHUNK), strict=True)
        return batch.row_means(torch.cat([_divergence(*pair) for pair in pairs]))

    return measured_rows(tokenizer, texts, batch_size, max_length, divergences, progress, shared)


def _divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """Divergence `[n]` from logits `[n, vocabulary]`."""
    base, tuned = base.log_softmax(dim=-1), tuned.to(base.device).log_softmax(dim=-1)
    return (base.exp() * (base - tuned)).sum(dim=-1)
