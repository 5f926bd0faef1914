"""The one training loop of all baselines."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel

from benchmarks.baselines.method import Method
from benchmarks.baselines.rows import TextRow, encode


def train_baseline(
    model: PeftModel,
    tokenizer: Any,
    method: Method,
    forget_rows: Sequence[TextRow],
    retain_rows: Sequence[TextRow],
    steps: int,
    learning_rate: float,
    seed: int = 0,
    batch_size: int = 16,
    max_length: int = 256,
    on_step: Callable[[int, PeftModel], bool | None] | None = None,
) -> None:
    """Train the model's adapter: AdamW, ten warm-up steps, constant rate, gradients clipped at norm 1.

    Args:
        model: with the LoRA to train; the reference of a method is this model with its adapter disabled.
        batch_size: forget rows, and retain rows, per step; each come in a new order every epoch.
        max_length: tokens of a row.
        on_step: called with the number of steps done and the model, from 0 on; True ends the training.

    Raises:
        FloatingPointError: the loss is not finite, which gradient ascent comes to if it is not stopped.
    """
    forget = method.rewrite(forget_rows) if method.rewrite else forget_rows
    batches = zip(_batches(forget, batch_size, seed), _batches(retain_rows, batch_size, seed + 1), strict=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    torch.manual_seed(seed)  # LoRA dropout, where there is any
    if on_step and on_step(0, model):
        return
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 10)
        forget_batch, retain_batch = (encode(tokenizer, rows, max_length) for rows in next(batches))
        model.train()
        loss = method.loss(model, forget_batch, retain_batch, model.disable_adapter)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"The loss of {method.name!r} is {loss.item()} at step {step}; lower the rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        if on_step and on_step(step + 1, model):
            return


def _batches(rows: Sequence[TextRow], size: int, seed: int) -> Iterator[list[TextRow]]:
    """Batches without end; an epoch's last rows go into the next one's first batch."""
    draw = random.Random(seed)
    waiting: list[TextRow] = []
    while True:
        while len(waiting) < size:
            waiting += draw.sample(list(rows), len(rows))
        yield waiting[:size]
        waiting = waiting[size:]
