"""Runs that begin at the guarded layer: what the layers up to it make of a row is kept, row by row.

Inside `cached_front(model, layer)` every forward pass through the model runs the layers up to `layer` at most once for
each row of tokens; adapters and guardrails above and at that layer (they work on its output) are in force as ever. So
guardrails of many settings are fitted, and measured with the library's own functions, for the price of the tail.

Of use only while nothing that changes the layers up to `layer`, such as a LoRA, is on the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.layers import find_decoder_layers


class Front:
    """The residual stream after the layer, `[tokens, d_in]` by row of token ids.

    Attributes:
        run, reused: how many rows were run through the layers, and how many were not.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[int, ...], Tensor] = {}
        self.run = self.reused = 0
        self._keys: list[tuple[int, ...]] | None = None  # of the batch that is running, if it can be kept
        self._kept: Tensor | None = None  # what is known of it

    def begin(self, ids: Tensor | None, mask: Tensor | None, reads_cache: bool) -> None:
        """A forward pass begins."""
        self._keys = self._kept = None
        if ids is None or mask is None or reads_cache or mask.shape != ids.shape:
            return
        lengths = mask.long().sum(dim=1).tolist()
        if any(not bool(row[:n].all()) for row, n in zip(mask, lengths, strict=True)):  # padded on the left
            return
        self._keys = [tuple(row[:n].tolist()) for row, n in zip(ids, lengths, strict=True)]
        if all(key in self.rows for key in self._keys):
            self.reused += len(self._keys)
            found = [self.rows[key] for key in self._keys]
            self._kept = found[0].new_zeros(*ids.shape, found[0].shape[-1])
            for i, row in enumerate(found):
                self._kept[i, : len(row)] = row

    def through(self, place: int, layer: int, whole: Any, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What decoder layer `place` gives."""
        if self._kept is not None:
            return self._kept if place == layer else hidden
        output = whole(hidden, *args, **kwargs)
        if place == layer and self._keys is not None:
            residual = output[0] if isinstance(output, tuple) else output
            self.run += len(self._keys)
            for key, row in zip(self._keys, residual.detach(), strict=True):
                self.rows[key] = row[: len(key)].clone()
        return output


@contextmanager
def cached_front(model: nn.Module, layer: int, front: Front | None = None) -> Iterator[Front]:
    """Inside, rows are run up to `layer` once.

    Args:
        model: the bare transformers model, which may get guardrails inside.
        front: what is known already, from an earlier use with the same model and layer.
    """
    place = find_decoder_layers(model)
    front = front or Front()

    def note(backbone: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        reads_cache = bool(kwargs.get("use_cache")) or kwargs.get("past_key_values") is not None
        front.begin(args[0] if args else kwargs.get("input_ids"), kwargs.get("attention_mask"), reads_cache)

    handle = place.backbone.register_forward_pre_hook(note, with_kwargs=True)
    for i in range(layer + 1):
        whole = place.layers[i].forward
        place.layers[i].forward = lambda hidden, *args, _i=i, _whole=whole, **kwargs: front.through(
            _i, layer, _whole, hidden, args, kwargs
        )
    try:
        with torch.no_grad():
            yield front
    finally:
        handle.remove()
        for i in range(layer + 1):
            del place.layers[i].forward
