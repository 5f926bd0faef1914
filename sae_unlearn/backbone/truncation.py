"""Forward passes that end at a decoder layer: what lies past it is not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from sae_unlearn.backbone.layers import find_decoder_layers, residual_of


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
