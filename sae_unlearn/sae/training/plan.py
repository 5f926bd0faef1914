"""Sizes of an SAE and of its training, from the tokens that there are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sae_unlearn.checks import check_integer
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.train_sae import SAETrainingConfig


TOKENS_PER_FEATURE = 64
USUAL_STEPS = 800
FEW_TOKENS = 16  # per feature: with fewer, many features are never active


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes of a training.

    Attributes:
        layer (int): 0-based decoder layer.
        d_in (int): Width of the model.
        d_sae (int): Number of features.
        l0 (int): Features active on an average token.
        rows (int): Rows that are run through the model.
        tokens (int): Tokens of these rows without the first one of each, which is not trained on.
        steps (int): Training steps.
        disk_bytes (int): Size of the activations on disk.
        seconds (float, *optional*): Estimated time; None before it was measured.
    """

    layer: int
    d_in: int
    d_sae: int
    l0: int
    rows: int
    tokens: int
    steps: int
    disk_bytes: int
    seconds: float | None = None

    def describe(self) -> str:
        """Return the plan in words."""
        minutes = 0 if self.seconds is None else round(self.seconds / 60)
        time = "less than a minute" if minutes < 1 else f"about {minutes:,} minute{'s' * (minutes > 1)}"
        time = "" if self.seconds is None else f", {time}"
        return (
            f"SAE of layer {self.layer}: {self.d_sae:,} features of width {self.d_in:,}, L0 {self.l0}; "
            f"{self.tokens:,} tokens ({self.disk_bytes / 1e9:.2g} GB on disk), {self.steps:,} steps{time}."
        )

    def warnings(self) -> list[str]:
        """Return the warnings to show before it starts."""
        if self.tokens >= FEW_TOKENS * self.d_sae:
            return []
        return [
            f"Only {self.tokens / self.d_sae:.1f} tokens for each of {self.d_sae:,} features: many will never be "
            f"active. Give more text: {TOKENS_PER_FEATURE * self.d_sae:,} tokens are enough."
        ]


def row_limit(config: SAETrainingConfig, d_in: int) -> int:
    """Return the largest number of rows whose activations (float32) fit into `max_disk_gb`."""
    return int(config.max_disk_gb * 1e9 // (4 * d_in * (config.context - 1)))


def plan_training(config: SAETrainingConfig, layers: int, d_in: int, rows: int) -> TrainingPlan:
    """Choose what the config leaves open.

        d_sae   the largest power of two with 64 tokens for each feature, from d_in to 16 d_in
        l0      d_in / 16, from 8 to 64
        epochs  as many as make 800 steps, from 1 to 8

    Args:
        config (SAETrainingConfig): The options.
        layers (int): Number of decoder layers of the model.
        d_in (int): Width of the model.
        rows (int): Rows of text that there are.

    Raises:
        UnlearnError: If the layer does not exist, or text or disk are too little.
    """
    layer = (layers - 1) // 2 if config.layer is None else config.layer
    check_integer("layer", layer, 0, layers - 1)
    kept = min(rows, row_limit(config, d_in))
    tokens = kept * (config.context - 1)
    if tokens < 2 * config.batch_size:
        raise UnlearnError(
            f"{tokens} tokens to train on: expected at least {2 * config.batch_size}, two steps. Give more text, more "
            "max_disk_gb, or a smaller batch_size."
        )
    d_sae = config.d_sae
    if d_sae is None:
        wanted = min(max(tokens / TOKENS_PER_FEATURE, d_in), 16 * d_in)
        d_sae = 2 ** max(math.floor(math.log2(wanted)), math.ceil(math.log2(d_in)))
    l0 = config.active_features or min(64, max(8, round(d_in / 16)))
    check_integer("active_features", l0, 1, d_sae - 1)
    epochs = config.epochs
    if epochs is None:
        epochs = min(8, max(1, math.ceil(USUAL_STEPS * config.batch_size / tokens)))
    steps = max(2, int(epochs * tokens) // config.batch_size)
    return TrainingPlan(layer, d_in, d_sae, l0, kept, tokens, steps, 4 * tokens * d_in)
