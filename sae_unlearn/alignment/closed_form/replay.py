"""Repeated truncated passes over the same rows that run only the layers that a change affects."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.alignment.closed_form.projections import Taps
from sae_unlearn.backbone.layers import find_decoder_layers, residual_of
from sae_unlearn.backbone.residual_stream import evaluation_mode, residual_batches
from sae_unlearn.errors import AlignmentError


_TOLERANCE = 1e-3


class AtNames(NamedTuple):
    """Inputs `k` and outputs `m` of a projection, and states `h` after the last layer, at names' ends.

    Attributes:
        k: `[rows, d_in]`.
        m: `[rows, d_out]`.
        h: `[rows, d]`.
    """

    k: Tensor
    m: Tensor
    h: Tensor


class _Batch:
    """Calls of the decoder layers on one batch: the residual stream and the other arguments."""

    def __init__(self) -> None:
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.inputs: dict[int, Tensor] = {}
        self.by_name = ""
        self.index: list[int] = []
        self.last = torch.empty(0)


class Replay:
    """The last tokens of some rows, read again and again while projections from layer `first` on change.

    One ordinary pass records how the model calls its layers. Later passes call them alone, from the lowest layer that
    has changed since.

    Args:
        model (nn.Module): The bare transformers model.
        rows (Sequence[list[int]]): Token ids. The last token of each is read.
        first, last (`int`): 0-based layers: the lowest that changes, and the one whose output is read.
        batch_size (int): Rows per forward pass.

    Raises:
        AlignmentError: If the model does more between its layers than to pass on the residual stream.
    """

    def __init__(self, model: nn.Module, rows: Sequence[list[int]], first: int, last: int, batch_size: int) -> None:
        self._layers = find_decoder_layers(model).layers
        self._model, self._first, self._last = model, first, last
        self._batches: list[_Batch] = []
        self._order = torch.empty(0)
        with ExitStack() as stack:
            for layer in range(first, last + 1):
                hook = self._recorder(layer)
                stack.enter_context(self._layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
            self._batches.append(_Batch())
            states = []
            for batch in residual_batches(model, rows, last, batch_size):
                here = self._batches[-1]
                here.index, here.last = batch.index, batch.kept.sum(dim=1) - 1
                states.append(self._at(here, batch.residual))
                self._batches.append(_Batch())
            self._batches.pop()
        self._order = torch.tensor([i for batch in self._batches for i in batch.index]).argsort()
        ordinary = torch.cat(states)[self._order.to(states[0].device)]
        again = self._run(first, None)[0]
        if not float((again - ordinary).norm()) <= _TOLERANCE * float(ordinary.norm()):
            raise AlignmentError(
                f'init="closed_form": expected decoder layers that only pass on the residual stream, got '
                f'{type(model).__name__}. Set init="zero".'
            )

    def read(self, taps: Taps, layer: int, changed: int | None = None) -> AtNames:
        """Run the rows with the changes of `taps` active, and read them at a projection.

        Args:
            taps (Taps): Open at `layer`.
            layer (int): 0-based layer of the projection.
            changed (int, *optional*): The lowest layer that has changed since the last pass; `None` is the first.
        """
        h, seen = self._run(self._first if changed is None else changed, (taps, layer))
        k, m = (torch.cat([one[part] for one in seen])[self._order.to(h.device)] for part in range(2))
        return AtNames(k, m, h)

    @torch.no_grad()
    def _run(self, start: int, tap: tuple[Taps, int] | None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        states, seen = [], []
        with evaluation_mode(self._model):
            for batch in self._batches:
                h = batch.inputs[start]
                for layer in range(start, self._last + 1):
                    batch.inputs[layer] = h
                    args, kwargs = batch.calls[layer]
                    given = ((h, *args), kwargs) if not batch.by_name else (args, {**kwargs, batch.by_name: h})
                    h = residual_of(self._layers[layer], self._layers[layer](*given[0], **given[1]))
                states.append(self._at(batch, h))
                if tap is not None:
                    k, m = tap[0].read(tap[1], h)
                    seen.append((self._at(batch, k).to(h.device), self._at(batch, m).to(h.device)))
        return torch.cat(states)[self._order.to(states[0].device)], seen

    def _recorder(self, layer: int) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            here = self._batches[-1]
            if args:
                here.inputs[layer], here.calls[layer] = args[0], (args[1:], dict(kwargs))
                return
            here.by_name = next(name for name in ("hidden_states", "x") if name in kwargs)
            here.inputs[layer] = kwargs[here.by_name]
            here.calls[layer] = ((), {name: value for name, value in kwargs.items() if name != here.by_name})

        return record

    @staticmethod
    def _at(batch: _Batch, values: Tensor) -> Tensor:
        """The values at each row's last token, in float32: `[batch, seq, d] -> [batch, d]`."""
        last = batch.last.to(values.device)
        return values[torch.arange(len(last), device=values.device), last].float()
