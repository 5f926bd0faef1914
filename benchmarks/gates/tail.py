"""Losses under many edits at one layer, for the price of the layers above it: the residual stream below is kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.residual_stream import residual_batches


class Kept(NamedTuple):
    """A batch of texts with the residual stream after the guarded layer."""

    residual: Tensor
    input_ids: Tensor
    kept: Tensor


def keep_residuals(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    layer: int,
    batch_size: int = 8,
    max_length: int = 128,
) -> list[Kept]:
    """Run the texts up to the layer once."""
    rows = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    return [Kept(b.residual, b.input_ids, b.kept) for b in residual_batches(model, rows, layer, batch_size)]


@torch.no_grad()
def tail_losses(
    model: nn.Module, layer: int, batches: list[Kept], edit: Callable[[Kept], Tensor] | None, special: list[int]
) -> Tensor:
    """Mean cross-entropy of each text (nats per content token at every second position), with the residual edited."""
    losses = []
    for batch in batches:
        residual = batch.residual if edit is None else edit(batch)
        with _from_layer(model, layer, residual):
            backbone = find_decoder_layers(model).backbone
            hidden = backbone(batch.input_ids, attention_mask=batch.kept.long(), use_cache=False).last_hidden_state
        targets = batch.input_ids[:, 1:]
        wanted = batch.kept[:, 1:] & ~torch.isin(targets, torch.tensor(special))
        wanted[:, ::2] = False
        logits = model.lm_head(hidden[:, :-1][wanted]).float()
        found = nn.functional.cross_entropy(logits, targets[wanted], reduction="none")
        sums = torch.zeros(wanted.shape).masked_scatter(wanted, found).sum(dim=1)
        losses.append(sums / wanted.sum(dim=1).clamp(min=1))
    return torch.cat(losses)


@contextmanager
def _from_layer(model: nn.Module, layer: int, residual: Tensor) -> Iterator[None]:
    layers = find_decoder_layers(model).layers
    for index in range(layer + 1):
        layers[index].forward = lambda hidden, *args, _index=index, **kwargs: residual if _index == layer else hidden
    try:
        yield
    finally:
        for index in range(layer + 1):
            del layers[index].forward
