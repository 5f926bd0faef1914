"""The logits at chosen positions of a batch, and nothing spent on the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from sae_unlearn.backbone.layers import input_device, output_embeddings
from sae_unlearn.errors import UnlearnError


def wanted_logits(model: nn.Module, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """`[n, vocabulary]` float32: the logits at the places `wanted [batch, seq]`, row by row.

    The head is given those positions only: with a large vocabulary it is most of the work. `logits_to_keep` is not
    passed, since a guardrail takes it as the place from which its gate judges token by token.

    Raises:
        UnlearnError: they are not finite. Whoever looked for the largest would find some token, and call it an answer.
    """
    device = input_device(model)
    with head_sees(model, wanted) as picked:
        logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False).logits
    logits = logits[0] if picked else logits[wanted.to(logits.device)]
    check_finite(logits)
    return logits.float()


def check_finite(logits: Tensor) -> None:
    """Raise unless the highest logit of every row, `[..., vocabulary]`, is finite; one that is not a number is highest.

    Raises:
        UnlearnError: naming the dtype, which is often why.
    """
    if logits.numel() and not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise UnlearnError(
            f"The model's logits are not finite; check its weights and dtype ({logits.dtype}; float16 overflows in "
            "some models, bfloat16 does not)."
        )


class FiniteLogits(LogitsProcessor):
    """`check_finite` at every step of `generate`, which takes a token whatever the logits are."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_finite(scores)
        return scores


def run_for_hooks(model: nn.Module, ids: Tensor, mask: Tensor) -> None:
    """Run a batch for what hooks see on the way. The head has to be given something, and gets one position a row."""
    first = torch.zeros_like(mask)
    first[:, 0] = True
    wanted_logits(model, ids, mask, first)


@contextmanager
def head_sees(model: nn.Module, wanted: Tensor) -> Iterator[list[bool]]:
    """Reduce what the output embeddings are given, `[batch, seq, d]`, to `[1, n, d]`. The list that comes with it is
    not empty once that happened; a model whose head is no module of its own is left alone."""
    picked: list[bool] = []
    head = output_embeddings(model)
    if head is None:
        yield picked
        return

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:-1] != wanted.shape:
            return None
        picked.append(True)
        return (args[0][wanted.to(args[0].device)][None], *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()
