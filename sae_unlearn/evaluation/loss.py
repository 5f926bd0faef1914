"""Cross-entropy of texts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.evaluation.metrics.text import PredictedTokens, measured_rows


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
