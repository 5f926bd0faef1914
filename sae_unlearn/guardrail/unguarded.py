"""The residual stream as it is without guardrails."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from sae_unlearn.backbone.residual_stream import ResidualBatch, residual_batches
from sae_unlearn.guardrail.model import guard_layers


@contextmanager
def guards_off(model: nn.Module) -> Iterator[None]:
    """Guardrails that are on the model are out of force; other adapters stay as they are."""
    guards = [layer for layer in guard_layers(model) if not layer.disable_adapters]
    for layer in guards:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in guards:
            layer.enable_adapters(True)


def unguarded_residuals(
    model: nn.Module,
    rows: Iterable[list[int]],
    layer: int,
    batch_size: int,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[ResidualBatch]:
    """`residual_batches` with the model's guardrails out of force. Arguments and errors are the same."""
    with guards_off(model):
        yield from residual_batches(model, rows, layer, batch_size, wanted=wanted)
