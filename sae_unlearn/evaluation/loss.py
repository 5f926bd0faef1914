"""Cross-entropy of texts."""

from collections.abc import Sequence

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
        progress: title of a progress bar; None for no bar.
    """
    rows = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    special = torch.tensor(tokenizer.all_special_ids)
    losses = torch.zeros(len(rows), dtype=torch.float64)
    with tqdm(total=len(rows), desc=progress, unit="text", disable=progress is None) as bar:
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            ids, mask = _right_padded([rows[i] for i in index], tokenizer)
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            for i, row_ids, row_mask, row_logits in zip(index, ids, mask, logits, strict=True):
                targets = row_ids[1:]
                wanted = row_mask[1:].bool() & ~torch.isin(targets, special)
                found = row_logits[:-1][wanted.to(row_logits.device)].float()
                losses[i] = nn.functional.cross_entropy(found, targets[wanted].to(found.device)).double()
            bar.update(len(index))
    return losses


def _right_padded(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]
