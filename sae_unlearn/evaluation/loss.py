"""Cross-entropy of texts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def row_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 4,
    max_length: int = 512,
    progress: str | None = None,
) -> Tensor:
    """Mean cross-entropy per token of each text, `[n]` float64, in nats.

    A text is given to the model whole, as the tokenizer makes it; padding and special tokens are not predicted. Texts
    are batched by length, and the result is in their own order.

    Args:
        model: any causal language model, with or without adapters.
        batch_size: texts per forward pass; the result does not depend on it, up to rounding.
        max_length: tokens of a text at most; what is longer is cut.
        progress: title of a progress bar; None for no bar.

    Raises:
        ValueError: a text has no token to predict.
    """
    rows = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    special = torch.tensor(tokenizer.all_special_ids, dtype=torch.long)
    losses = torch.zeros(len(rows), dtype=torch.float64)
    with tqdm(total=len(rows), desc=progress, unit="text", disable=progress is None) as bar:
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            ids, mask = _right_padded([rows[i] for i in index])
            wanted = torch.zeros_like(mask)  # the positions whose next token is predicted
            wanted[:, :-1] = mask[:, 1:] & ~torch.isin(ids[:, 1:], special)
            counts = wanted.sum(dim=1)
            if not counts.all():
                bad = index[int((counts == 0).nonzero()[0])]
                raise ValueError(f"text {bad} ({texts[bad][:40]!r}) has no token to predict; leave it out.")
            logits = _wanted_logits(model, ids, mask, wanted)
            targets = ids[:, 1:][wanted[:, :-1]].to(logits.device)
            found = logits.logsumexp(dim=-1) - logits.gather(1, targets[:, None])[:, 0]
            for i, row in zip(index, found.double().cpu().split(counts.tolist()), strict=True):
                losses[i] = row.mean()
            bar.update(len(index))
    return losses


def _wanted_logits(model: nn.Module, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """`[n, vocabulary]` float32: the logits at the places `wanted [batch, seq]`, row by row.

    The head is given those positions only: with a large vocabulary it is most of the work. `logits_to_keep` is not
    passed, since a guardrail takes it as the place from which its gate judges token by token.
    """
    device = model.get_input_embeddings().weight.device
    with _head_sees(model, wanted) as picked:
        logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False).logits
    logits = logits[0] if picked else logits[wanted.to(logits.device)]
    return logits.float()


@contextmanager
def _head_sees(model: nn.Module, wanted: Tensor) -> Iterator[list[bool]]:
    """Reduce what the output embeddings are given, `[batch, seq, d]`, to `[1, n, d]`. The list that comes with it is
    not empty once that happened; a model whose head is no module of its own is left alone."""
    picked: list[bool] = []
    head = model.get_output_embeddings()
    if head is None:
        yield picked
        return

    def pick(module: nn.Module, args: tuple) -> tuple | None:
        if not args or args[0].shape[:-1] != wanted.shape:
            return None
        picked.append(True)
        return (args[0][wanted.to(args[0].device)][None], *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()


def _right_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask
