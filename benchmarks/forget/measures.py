"""What is measured of a model that was to forget a topic: see `compare.py`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.forget.budget import content_rows, row_means
from benchmarks.forget.setting import PlainText, Setting
from sae_unlearn.evaluation import Choice, Estimate, option_likelihoods, right_by_likelihood, row_losses
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.gate.offline import read_batch, unguarded_residuals


SIDES = ("test", "other_test")


def base_figures(setting: Setting) -> dict[str, Any]:
    """Losses and right choices of the bare model, text by text, which the others are compared with."""
    found: dict[str, Any] = {}
    for part in ("validation", "other_validation", *SIDES):
        found[part] = text_losses(setting, setting.model, getattr(setting.texts, part)).tolist()
    for part in ("choices", "other_choices"):
        found[part] = right_choices(setting, setting.model, getattr(setting.texts, part))
    return found


def text_losses(setting: Setting, model: nn.Module, texts: Sequence[str], prompt: str = "") -> Tensor:
    """Mean loss of each text, nats per token, `[n]` float64; with a prompt, of the text's own tokens after it."""
    if prompt:
        room = len(setting.tokenizer(prompt)["input_ids"]) + setting.size.max_length
        rows = [content_rows(setting.tokenizer, [PlainText(prompt.rstrip(), text)], room) for text in texts]
        return row_means(model, rows)
    return row_losses(model, setting.tokenizer, texts, batch_size=8, max_length=setting.size.max_length)


def guarded_losses(setting: Setting, guarded: nn.Module, texts: Sequence[str], base: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of each text under the guardrails, `[n]`, and whether one fires anywhere in it, `[n]` bool.

    A text in which none fires is the base's bit for bit, as the tests of the guardrail show, and is not run again.
    """
    fired = gate_fires(setting, guarded, texts)
    losses = base.clone()
    if fired.any():
        again = [text for text, on in zip(texts, fired.tolist(), strict=True) if on]
        losses[fired] = text_losses(setting, guarded, again)
    return losses, fired


def gate_fires(setting: Setting, guarded: nn.Module, texts: Sequence[str]) -> Tensor:
    """Whether some guardrail on the model fires at some token of each text, `[n]` bool; a truncated pass."""
    rows = [setting.tokenizer(t, truncation=True, max_length=setting.size.max_length)["input_ids"] for t in texts]
    fired = torch.zeros(len(rows), dtype=torch.bool)
    for layer in guard_layers(guarded):
        for name in layer.guard_config:
            config, encoder, _ = layer.guardrail(name)
            for batch in unguarded_residuals(setting.model, rows, config.layer, 8):
                reading = read_batch(batch, encoder, config)
                fired[batch.index] |= ~(reading.statistics <= config.threshold)
    return fired


def right_choices(setting: Setting, model: nn.Module, choices: Sequence[Choice], prompt: str = "") -> list[bool]:
    """Whether the right option is the likeliest per character, for each question; the question is asked without
    options."""
    if not choices:
        return []
    asked = [replace(choice, question=prompt + choice.question) for choice in choices]
    likelihoods = option_likelihoods(model, setting.tokenizer, asked)
    return right_by_likelihood(asked, likelihoods, per_character=True).tolist()


def compared(losses: Tensor, base: Sequence[float], fired: Tensor | None = None) -> dict[str, Any]:
    """The mean loss, its change against the base with an interval over texts, the changes, and the share that fired."""
    change = losses - torch.tensor(base, dtype=torch.float64)
    found = {
        "loss": float(losses.mean()),
        "base": float(torch.tensor(base).mean()),
        "change": Estimate.mean(change).to_dict(),
        "changes": [round(value, 5) for value in change.tolist()],
    }
    return found if fired is None else found | {"fired": Estimate.share(fired.tolist()).to_dict()}


def choices_compared(right: Sequence[bool], base: Sequence[bool]) -> dict[str, Any] | None:
    """The share of right choices, that of the base, and the paired change with an interval; None without questions."""
    if not right:
        return None
    change = torch.tensor(right, dtype=torch.float64) - torch.tensor(base, dtype=torch.float64)
    return {
        "right": Estimate.share(right).to_dict(),
        "base": Estimate.share(base).to_dict(),
        "change": Estimate.mean(change).to_dict(),
    }
