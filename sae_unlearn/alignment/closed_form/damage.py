"""Damage of a change: divergence from the base model's predictions on rows that no sweep reads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sae_unlearn.alignment.loss import kl_to_base
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.backbone.tokens import right_padded


_LARGEST = 2**27  # logits that are kept: 512 MiB in float32


class Damage:
    """Mean KL divergence of the model from its base over places of validation rows, in nats per token.

        damage = 1/n sum over rows and places of KL(base || changed)

    The base's logits are computed once. If the rows give more than 2^27 logits, only the first rows that give fewer are
    used, so rows should be in a random order.

    Args:
        model (nn.Module): The bare transformers model.
        rows (Sequence[tuple[list[int], list[int]]]): Token ids, and the places whose predictions count.
        batch_size (int): Rows per forward pass.
    """

    def __init__(self, model: nn.Module, rows: Sequence[tuple[list[int], list[int]]], batch_size: int) -> None:
        self._model = model
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._base: list[Tensor] = []
        self.tokens = 0
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            ids, mask = right_padded([row for row, _ in part])
            wanted = torch.zeros_like(mask)
            for i, (_, places) in enumerate(part):
                wanted[i, places] = True
            with adapters_off(model), torch.no_grad(), evaluation_mode(model):
                base = wanted_logits(model, ids, mask, wanted)
            self._batches.append((ids, mask, wanted))
            self._base.append(base)
            self.tokens += len(base)
            if (self.tokens + len(base)) * base.shape[1] > _LARGEST:
                break

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the present damage."""
        total = 0.0
        with evaluation_mode(self._model):
            for (ids, mask, wanted), base in zip(self._batches, self._base, strict=True):
                total += float(kl_to_base(base, wanted_logits(self._model, ids, mask, wanted)))
        return total / max(self.tokens, 1)
