"""The figures of a set of texts: perplexity, KL to the base, and where the gate fires."""

from collections.abc import Sequence
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.evaluation.kl import row_divergences
from sae_unlearn.evaluation.loss import row_losses
from sae_unlearn.evaluation.metrics.firing import row_firings
from sae_unlearn.evaluation.metrics.text import predicted_tokens
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, fingerprint
from sae_unlearn.evaluation.settings import Settings
from sae_unlearn.guardrail.model import guard_layers


def text_figures(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    side: str,
    data: str,
    settings: Settings,
    base: nn.Module | None = None,
) -> list[Figure]:
    """Perplexity over all tokens of the texts, and the mean over texts of the KL per token.

        perplexity = exp( sum_i n_i loss_i / sum_i n_i ),   n_i predicted tokens of text i

    Args:
        base: what KL is measured to; None takes a `PeftModel` with its adapters disabled, and no KL for other models.
    """
    rows = fingerprint([list(texts), settings.max_length])
    figure = partial(figure_of_rows, side, data, subjects=[""] * len(texts), rows=rows)
    sizes = (settings.batch_size, settings.max_length)
    losses = row_losses(model, tokenizer, texts, *sizes, settings.bar(side, data, "perplexity"), shared=True)
    counts = predicted_counts(tokenizer, texts, settings.max_length)
    figures = [figure("perplexity", "perplexity", losses, weights=counts)]
    # inside `disable_adapter()` there is nothing to compare, and leaving a second one would switch the adapters on
    if base is not None or (isinstance(model, PeftModel) and model.get_model_status().enabled is not False):
        divergences = row_divergences(
            model, tokenizer, texts, base, *sizes, settings.bar(side, data, "KL"), shared=True
        )
        figures.append(figure("kl", "nats", divergences))
    if guard_layers(model):
        fired = row_firings(model, tokenizer, texts, *sizes, settings.bar(side, data, "gate"), shared=True)
        figures += [figure(f"fires:{name}", "share", rates) for name, rates in fired.items()]
    return figures


def predicted_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Tensor:
    """How many tokens of each text are predicted, `[n]`."""
    counts = torch.zeros(len(texts), dtype=torch.long)
    for batch in predicted_tokens(tokenizer, texts, 64, max_length):
        counts[batch.index] = torch.tensor(batch.counts)
    return counts
