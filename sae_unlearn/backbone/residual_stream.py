"""Truncated forward passes: the residual stream after one layer, and nothing computed past it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.layers import find_decoder_layers, input_device
from sae_unlearn.backbone.limits import Limits
from sae_unlearn.backbone.padding import right_padded
from sae_unlearn.backbone.truncation import LayerReached, stop_after
from sae_unlearn.errors import UnlearnError


class ResidualBatch(NamedTuple):
    """The residual stream of a batch, on the device of the layer.

    Attributes:
        residual: `[batch, seq, d_in]`, in the model's dtype.
        input_ids: `[batch, seq]`, right-padded.
        kept: `[batch, seq]` bool, False at padding.
        index: position of each row in its corpus.
        number: of the batch among all batches, run or not.
    """

    residual: Tensor
    input_ids: Tensor
    kept: Tensor
    index: list[int]  # type: ignore[assignment]  # `tuple.index` is hidden, and nobody looks for it here
    number: int = 0


def residual_batches(
    model: nn.Module,
    rows: Iterable[list[int]],
    layer: int,
    batch_size: int,
    bucket: int = 32,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[ResidualBatch]:
    """Run rows of token ids through the model up to and including `layer`, batch by batch.

    Later layers, the final norm and the head are not run. Rows are sorted by length within buckets of `bucket`
    batches, so that little is spent on padding; within that the order is the rows' own, and the result of a row does
    not depend on its batch. Adapters stay as they are; training mode is switched off and put back.

    Args:
        model: the bare transformers model.
        rows: token ids, special tokens included.
        layer: 0-based decoder layer whose output is wanted.
        batch_size: rows per forward pass.
        bucket: batches per bucket.
        wanted: of a batch's number, whether it is to be run; asked when its turn has come. None runs all.

    Raises:
        UnlearnError: there is no such layer, a row is longer than the model can read or holds an id that it does not
            know, or a row's residual stream is not finite.
    """
    place = find_decoder_layers(model)
    if not 0 <= layer < len(place.layers):
        raise UnlearnError(f"layer={layer} but {type(model).__name__} has layers 0 to {len(place.layers) - 1}.")
    device, limits = input_device(model), Limits.of(model, place.backbone)
    with evaluation_mode(model), stop_after(place.layers[layer]):
        for number, batch in enumerate(_batches(rows, batch_size, bucket)):
            if wanted is not None and not wanted(number):
                continue
            index = [i for i, _ in batch]
            limits.check(index, [row for _, row in batch])
            ids, kept = right_padded([row for _, row in batch])
            try:
                with torch.no_grad():
                    place.backbone(input_ids=ids.to(device), attention_mask=kept.long().to(device), use_cache=False)
            except LayerReached as reached:
                residual = reached.residual
            else:
                raise UnlearnError(f"Layer {layer} of {type(model).__name__} was never run.")
            kept = kept.to(residual.device)
            if not bool(torch.isfinite(residual[kept]).all()):
                raise UnlearnError(
                    f"The residual stream after layer {layer} is not finite for some of rows {index}; check the "
                    f"model's weights and dtype ({residual.dtype}; float16 overflows in some models, bfloat16 does "
                    "not)."
                )
            yield ResidualBatch(residual, ids.to(residual.device), kept, index, number)


def _batches(rows: Iterable[list[int]], batch_size: int, bucket: int) -> Iterator[list[tuple[int, list[int]]]]:
    pending: list[tuple[int, list[int]]] = []
    for item in enumerate(rows):
        pending.append(item)
        if len(pending) == batch_size * bucket:
            yield from _by_length(pending, batch_size)
            pending = []
    yield from _by_length(pending, batch_size)


def _by_length(rows: list[tuple[int, list[int]]], batch_size: int) -> Iterator[list[tuple[int, list[int]]]]:
    ordered = sorted(rows, key=lambda item: -len(item[1]))  # longest first: too little memory shows at once
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Training mode is switched off, and put back module by module."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
