"""How far a tuned model's predictions have moved from its base."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.evaluation.metrics.text import PredictedTokens, measured_rows


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
        with cast(Any, model).disable_adapter() if base is None else nullcontext():
            before = wanted_logits(model if base is None else base, *tokens)
        pairs = zip(before.split(_CHUNK), wanted_logits(model, *tokens).split(_CHUNK), strict=True)
        return batch.row_means(torch.cat([_divergence(*pair) for pair in pairs]))

    return measured_rows(tokenizer, texts, batch_size, max_length, divergences, progress, shared)


def _divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """`[n]` from logits `[n, vocabulary]`."""
    base, tuned = base.log_softmax(dim=-1), tuned.to(base.device).log_softmax(dim=-1)
    return (base.exp() * (base - tuned)).sum(dim=-1)
