"""Logits at chosen positions of a batch, without the cost of the others."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from sae_unlearn.backbone.layers import input_device, output_embeddings
from sae_unlearn.errors import UnlearnError


def wanted_logits(model: nn.Module, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """Return logits `[n, vocabulary]` float32 at the positions `wanted [batch, seq]`, row by row.

    The head runs at those positions only: with a large vocabulary it is most of the work. `logits_to_keep` is not
    passed, because a guardrail decides token by token from that position on.

    A guardrail with `action="refuse"` clamps rows that fire, and writes no message: their logits are those of "clamp".

    Raises:
        UnlearnError: If they are not finite. Their largest would be some token, and would look like an answer.
    """
    device = input_device(model)
    with head_sees(model, wanted) as picked:
        logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False).logits
    logits = logits[0] if picked else logits[wanted.to(logits.device)]
    check_finite(logits)
    return logits.float()


def check_finite(logits: Tensor) -> None:
    """Raise unless the highest logit of every row `[..., vocabulary]` is finite; NaN counts as highest.

    Raises:
        UnlearnError: If one is not. The error names the dtype, a common cause.
    """
    if logits.numel() and not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise UnlearnError(
            f"The model's logits are not finite in {logits.dtype}. Check its weights, or use bfloat16: some models "
            "overflow in float16."
        )


class FiniteLogits(LogitsProcessor):
    """Logits processor that runs `check_finite` at every step of `generate`, which itself does not check."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_finite(scores)
        return scores


def run_for_hooks(model: nn.Module, ids: Tensor, mask: Tensor) -> None:
    """Run a batch only for its hooks. The head runs at one position a row, the least that it needs."""
    first = torch.zeros_like(mask)
    first[:, 0] = True
    wanted_logits(model, ids, mask, first)


_MEASURING = threading.local()


def are_measured() -> bool:
    """Return True inside of `head_sees`, where logits are measured and not read as an answer."""
    return bool(getattr(_MEASURING, "on", False))


@contextmanager
def head_sees(model: nn.Module, wanted: Tensor) -> Iterator[list[bool]]:
    """Reduce the input of the output embeddings, `[batch, seq, d]`, to `[1, n, d]` in the block.

    The yielded list is not empty once that happened. A model whose head is not a module is unchanged. In the block
    guardrails write no refusal into logits, see `are_measured`.
    """
    picked: list[bool] = []
    head = output_embeddings(model)

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:-1] != wanted.shape:
            return None
        picked.append(True)
        return (args[0][wanted.to(args[0].device)][None], *args[1:])

    handle = None if head is None else head.register_forward_pre_hook(pick)
    before, _MEASURING.on = are_measured(), True
    try:
        yield picked
    finally:
        _MEASURING.on = before
        if handle is not None:
            handle.remove()
