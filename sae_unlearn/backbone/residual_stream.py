"""Truncated forward passes: the residual stream after one layer, and nothing computed past it.

Forward passes that end at a decoder layer: what lies past it is not run.

What a model can read at all: ids of its vocabulary, and as many tokens as it has learned positions.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sae_unlearn.backbone.layers import find_decoder_layers, input_device, input_embeddings, max_positions, residual_of
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.errors import UnlearnError


class LayerReached(Exception):
    """Raised by a layer inside `stop_after`, with its output, the residual stream `[batch, seq, d_in]`."""

    def __init__(self, residual: Tensor) -> None:
        self.residual = residual


@contextmanager
def stop_after(decoder_layer: nn.Module) -> Iterator[None]:
    """Inside, a forward pass through `decoder_layer` ends there with `LayerReached`."""

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise LayerReached(residual_of(module, output))

    # before a guardrail's hook on the same layer, but after FSDP's, which must see the layer end
    handle = decoder_layer.register_forward_hook(stop, prepend=not _is_sharded(decoder_layer))
    try:
        yield
    finally:
        handle.remove()


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP (`fully_shard`) has put its hooks on a module."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@contextmanager
def truncated(model: nn.Module, layer: int) -> Iterator[None]:
    """Inside, `model` returns the residual stream after `layer`, and so does whatever wraps it.

    The pass ends inside of the model, so that wrappers (PEFT, DistributedDataParallel, accelerate's autocast) see an
    ordinary call that returns a tensor; gradients flow back through it as usual.

    Args:
        model: the bare transformers model, not a wrapper around it.
        layer: 0-based decoder layer whose output `[batch, seq, d_in]` is returned.
    """
    whole, own = model.forward, model.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        try:
            whole(*args, **kwargs)
        except LayerReached as reached:
            return reached.residual
        raise RuntimeError(f"Layer {layer} of {type(model).__name__} was never run.")

    model.forward = forward
    try:
        with stop_after(find_decoder_layers(model).layers[layer]):
            yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


class Limits(NamedTuple):
    """The limits of a model.

    Attributes:
        vocabulary: number of token ids; None if it cannot be told.
        positions: number of tokens of a row; None where positions are computed, and not looked up in a table.
    """

    vocabulary: int | None
    positions: int | None

    @classmethod
    def of(cls, model: nn.Module, backbone: nn.Module) -> "Limits":
        """Of a bare transformers model and its text decoder, which is without what a multimodal model reads pictures
        with. A table of positions is an embedding there with as many rows as the config names positions, or two more,
        as in OPT."""
        tokens: Any = input_embeddings(model)
        named = max_positions(model)
        tables = [m for m in backbone.modules() if isinstance(m, nn.Embedding) and m is not tokens]
        learned = named is not None and any(m.num_embeddings in (named, named + 2) for m in tables)
        return cls(getattr(tokens, "num_embeddings", None), named if learned else None)

    def check(self, index: list[int], rows: list[list[int]]) -> None:
        """Raise unless the model can read the rows, which the corpus holds at places `index`. On a GPU it would fail
        without a word of why, and take the process with it.

        Raises:
            UnlearnError: naming the row and what is too large.
        """
        for i, row in zip(index, rows, strict=True):
            if self.positions is not None and len(row) > self.positions:
                raise UnlearnError(
                    f"Row {i} has {len(row)} tokens, and the model has learned {self.positions} positions; give "
                    f"shorter rows, or max_length={self.positions}."
                )
            if self.vocabulary is not None and row and not 0 <= min(row) <= max(row) < self.vocabulary:
                wrong = max(row) if max(row) >= self.vocabulary else min(row)
                raise UnlearnError(
                    f"Row {i} holds token id {wrong}, and the model has the ids 0 to {self.vocabulary - 1}; is the "
                    "tokenizer that of the model?"
                )


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
