"""Forward passes that end at a decoder layer, its residual stream, and the limits of a model's input."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sae_unlearn.backbone.layers import find_decoder_layers, input_device, input_embeddings, max_positions, residual_of
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.checks import check_integer
from sae_unlearn.errors import UnlearnError


class LayerReached(Exception):
    """Signal of a layer inside `stop_after`, with its output, the residual stream `[batch, seq, d_in]`."""

    def __init__(self, residual: Tensor) -> None:
        self.residual = residual


@contextmanager
def stop_after(decoder_layer: nn.Module) -> Iterator[None]:
    """End each forward pass of the block after `decoder_layer`, with `LayerReached`."""

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise LayerReached(residual_of(module, output))

    # before a guardrail's hook on the same layer, and after FSDP's, which must see the layer end
    handle = decoder_layer.register_forward_hook(stop, prepend=not _is_sharded(decoder_layer))
    try:
        yield
    finally:
        handle.remove()


def _is_sharded(module: nn.Module) -> bool:
    """Return True if a module has hooks of FSDP (`fully_shard`)."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@contextmanager
def truncated(model: nn.Module, layer: int) -> Iterator[None]:
    """Make `model`, and each wrapper of it, return the residual stream after `layer` in the block.

    The pass ends inside of the model, so wrappers (PEFT, DistributedDataParallel, accelerate's autocast) see an
    ordinary call that returns a tensor. Gradients flow through it as usual.

    Args:
        model (Module): The bare transformers model, not a wrapper around it.
        layer (int): 0-based decoder layer whose output `[batch, seq, d_in]` is returned.
    """
    whole, own = model.forward, model.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        try:
            whole(*args, **kwargs)
        except LayerReached as reached:
            return reached.residual
        raise UnlearnError(f"layer={layer}: expected {type(model).__name__} to run it, but it did not.")

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
    """Limits of a model's input.

    Attributes:
        vocabulary (int or None): Number of token ids; None if unknown.
        positions (int or None): Largest number of tokens of a row; None if positions are computed and not learned.
    """

    vocabulary: int | None
    positions: int | None

    @classmethod
    def of(cls, model: nn.Module, backbone: nn.Module) -> "Limits":
        """Return the limits of a bare transformers model.

        Positions are learned if the text decoder, which excludes a multimodal model's vision part, has an embedding
        with `max_position_embeddings` rows, or two more, as in OPT.

        Args:
            model (Module): The bare transformers model.
            backbone (Module): Its text decoder.
        """
        tokens: Any = input_embeddings(model)
        named = max_positions(model)
        tables = [m for m in backbone.modules() if isinstance(m, nn.Embedding) and m is not tokens]
        learned = named is not None and any(m.num_embeddings in (named, named + 2) for m in tables)
        return cls(getattr(tokens, "num_embeddings", None), named if learned else None)

    def check(self, index: list[int], rows: list[list[int]]) -> None:
        """Raise unless the model can read the rows. On a GPU the call would end the process without a reason.

        Args:
            index (list[int]): Positions of the rows in the corpus, for the error.
            rows (list[list[int]]): Token ids of each row.

        Raises:
            UnlearnError: If a row is too long, or has an unknown token id.
        """
        for i, row in zip(index, rows, strict=True):
            if self.positions is not None and len(row) > self.positions:
                raise UnlearnError(
                    f"Row {i} has {len(row)} tokens: expected at most {self.positions}, the model's learned positions. "
                    f"Pass shorter rows, or max_length={self.positions}."
                )
            if self.vocabulary is not None and row and not 0 <= min(row) <= max(row) < self.vocabulary:
                wrong = max(row) if max(row) >= self.vocabulary else min(row)
                raise UnlearnError(
                    f"Row {i} has token id {wrong}: expected 0 to {self.vocabulary - 1}, the model's vocabulary. Pass "
                    "the model's own tokenizer."
                )


class ResidualBatch(NamedTuple):
    """Residual stream of a batch, on the device of the layer.

    Attributes:
        residual (Tensor): Residual stream `[batch, seq, d_in]`, in the model's dtype.
        input_ids (Tensor): Token ids `[batch, seq]`, right-padded.
        kept (Tensor): `[batch, seq]` bool, False at padding.
        index (list[int]): Position of each row in its corpus.
        number (int, *optional*, defaults to 0): Number of the batch among all batches, run or not.
    """

    residual: Tensor
    input_ids: Tensor
    kept: Tensor
    index: list[int]  # type: ignore[assignment]  # hides `tuple.index`, which is not used
    number: int = 0


def residual_batches(
    model: nn.Module,
    rows: Iterable[list[int]],
    layer: int,
    batch_size: int,
    bucket: int = 32,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[ResidualBatch]:
    """Run rows of token ids through the model up to and including `layer`; yield batch by batch.

    Later layers, the final norm and the head are not run. Rows are sorted by length within buckets of `bucket` batches,
    so that little padding is computed; rows of one length keep their order, and the result of a row does not depend on
    its batch. Adapters are unchanged. Training mode is disabled and restored.

    Args:
        model (Module): The bare transformers model.
        rows (Iterable[list[int]]): Token ids, special tokens included.
        layer (int): 0-based decoder layer whose output is read.
        batch_size (int): Rows per forward pass.
        bucket (int, *optional*, defaults to 32): Batches per bucket.
        wanted (Callable[[int], bool], *optional*): Function of a batch's number that returns True to run it, called
            right before. None runs all.

    Raises:
        UnlearnError: If the layer does not exist, a row is too long or has an unknown id, or its residual stream is not
            finite.
    """
    place = find_decoder_layers(model)
    check_integer("layer", layer, 0, len(place.layers) - 1)
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
                raise UnlearnError(f"layer={layer}: expected {type(model).__name__} to run it, but it did not.")
            kept = kept.to(residual.device)
            if not bool(torch.isfinite(residual[kept]).all()):
                raise UnlearnError(
                    f"layer={layer}: the residual stream is not finite in {residual.dtype} for some of rows "
                    f"{index}. Check the weights, or use bfloat16: some models overflow in float16."
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
    ordered = sorted(rows, key=lambda item: -len(item[1]))  # longest first: a lack of memory shows at once
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Disable training mode in the block and restore it module by module."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
