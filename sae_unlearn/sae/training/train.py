"""`train_sae`: from a model and texts to an SAE of one of its layers."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.adapters_off import is_adapter_module
from sae_unlearn.backbone.distributed import by_first, gathered, process_count, process_index
from sae_unlearn.backbone.layers import bare_model, find_decoder_layers, text_config
from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.atomic import write_whole
from sae_unlearn.options.field import merged, takes_options
from sae_unlearn.options.train_sae import SAETrainingConfig
from sae_unlearn.sae.autoencoder import SparseAutoencoder
from sae_unlearn.sae.training.folding import Standardization, folded, threshold_for
from sae_unlearn.sae.training.harvest import SAMPLE, Activations, harvest, layer_outputs, usual_tokens
from sae_unlearn.sae.training.measures import LOSS_ROWS, measure_sae
from sae_unlearn.sae.training.plan import TrainingPlan, plan_training, row_limit
from sae_unlearn.sae.training.rows import rows_of_texts, split, texts_in
from sae_unlearn.sae.training.trainer import sae_lens, seconds_per_step, train


METRICS = "metrics.json"
THRESHOLD_TOKENS = 2**24  # pre-activations that the threshold is taken of
HELD_OUT_ROWS = 512

logger = logging.getLogger(__name__)


@takes_options(SAETrainingConfig)
def train_sae(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Any],
    output: str | os.PathLike[str],
    *,
    config: SAETrainingConfig | None = None,
    **options: Any,
) -> SparseAutoencoder:
    """Train a BatchTopK SAE of one layer, and write it in SAELens' format with its measures.

    The layer's outputs are collected by truncated forward passes and kept on disk. Outlier tokens (a norm above twice
    the median) and each row's first token are left out, and every dimension is standardized; afterwards both are folded
    into the weights, so the SAE reads the model's activations as they are. An SAE knows the topics of the texts that
    it was trained on: let them hold text of the topic and of everything near it.

    Processes of a launch share the forward passes, one of them trains, and all return the SAE.

    Args:
        model (nn.Module): A causal language model of transformers.
        tokenizer (PreTrainedTokenizerBase): The model's.
        texts (Iterable): Texts, or rows with a `text_column`. 400,000 tokens make a useful SAE of a small model.
        output (str or PathLike): Gets `cfg.json`, `sae_weights.safetensors` and `metrics.json`.
        config (SAETrainingConfig, *optional*): The options; the defaults without one.
        options: Any field of `SAETrainingConfig` by its name, in place of its value in `config`.

    Returns:
        `SparseAutoencoder`: The SAE, on the CPU.

    Raises:
        ImportError: If `sae-lens` is not installed.
        UnlearnError: If a value does not fit, or there is too little text.
    """
    given = merged(SAETrainingConfig, config, options, UnlearnError)
    sae_lens()
    run = Training(model, tokenizer, texts, output, given)
    plan = run.estimate()
    if process_index() == 0:
        logger.warning(plan.describe())
    return run.run()


class Training:
    """One training: `plan` is known once it is made, and `run` does it.

    Attributes:
        plan: Sizes and steps.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        texts: Iterable[Any],
        output: str | os.PathLike[str],
        config: SAETrainingConfig,
    ) -> None:
        if any(is_adapter_module(part) for part in model.modules()):
            raise UnlearnError("model has adapters: expected the base model. Detach them.")
        self.model: Any = bare_model(model)
        self.tokenizer, self.config, self.output = tokenizer, config, Path(output).expanduser()
        self.folder = Path(config.work_dir or f"{self.output}-work").expanduser()
        d_in = text_config(self.model).hidden_size
        limit = row_limit(config, d_in) * config.context
        seen, aside = split(texts_in(texts, config.text_column), config.held_out, config.seed)
        most = limit if config.max_tokens is None else min(limit, config.max_tokens)
        self.rows = rows_of_texts(tokenizer, seen, config.context, most)
        self.held_out = rows_of_texts(tokenizer, aside, config.context)[:HELD_OUT_ROWS]
        if not len(self.held_out):
            raise UnlearnError(
                f"held_out={config.held_out}: expected a row of {config.context} tokens at least. Give more text."
            )
        layers = len(find_decoder_layers(self.model).layers)
        self.plan: TrainingPlan = plan_training(config, layers, d_in, len(self.rows))
        self.rows = self.rows[: self.plan.rows]
        for warning in self.plan.warnings() if process_index() == 0 else ():
            warnings.warn(warning, stacklevel=3)

    def estimate(self) -> TrainingPlan:
        """The plan with the time that it will take, from two forward passes and a few training steps."""
        size = self.config.rows_per_pass
        times = []
        for part in (self.rows[:size], self.rows[:size]):
            started = time.monotonic()
            list(layer_outputs(self.model, self.plan.layer, part, size))
            times.append((time.monotonic() - started) / len(part))
        row = max(gathered(times[1]))
        step = by_first(lambda: seconds_per_step(self.plan, self.config.batch_size, self.folder))
        layers = len(find_decoder_layers(self.model).layers) / (self.plan.layer + 1)
        alone = len(self.held_out) + 3 * layers * min(LOSS_ROWS, len(self.held_out))  # rows that one process runs
        passes = row * (len(self.rows) / process_count() + alone)
        return replace(self.plan, seconds=passes + step * self.plan.steps)

    def run(self) -> SparseAutoencoder:
        """Do it and write the result. Processes of a launch share the forward passes; one of them trains."""
        config, started = self.config, time.monotonic()
        activations = harvest(
            self.model, self.plan.layer, self.rows, self.folder, config.rows_per_pass, progress=config.progress
        )
        return by_first(lambda: self._train(activations, started))

    def _train(self, activations: Activations, started: float) -> SparseAutoencoder:
        config, plan, harvested = self.config, self.plan, time.monotonic()
        kept = usual_tokens(activations)
        draw = torch.Generator().manual_seed(config.seed)
        sample = kept[torch.randperm(len(kept), generator=draw)[:SAMPLE]]
        by = Standardization.of(activations.tokens(sample))
        weights = train(
            activations,
            kept,
            by,
            plan,
            self.folder,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
            progress=config.progress,
        )
        trained = time.monotonic()
        sample = sample[: max(256, THRESHOLD_TOKENS // plan.d_sae)]
        theta = _threshold(weights, by(activations.tokens(sample)), plan.l0)
        sae = folded(weights, theta, by, plan.layer)
        measured = measure_sae(
            self.model, sae, plan.layer, self.held_out, config.rows_per_pass, progress=config.progress
        )
        metrics = {
            "model": getattr(self.model, "name_or_path", None) or None,
            "layer": plan.layer,
            "d_sae": plan.d_sae,
            "training": {
                "tokens": len(kept),
                "outlier_tokens_left_out": len(activations) - len(kept),
                "steps": plan.steps,
                "batch_size": config.batch_size,
                "learning_rate": config.learning_rate,
                "l0": plan.l0,
                "seed": config.seed,
                "harvest_seconds": round(harvested - started, 1),
                "training_seconds": round(trained - harvested, 1),
            },
            "held_out": measured,
        }
        sae.save_pretrained(self.output)
        write_whole(self.output / METRICS, json.dumps(metrics, indent=2) + "\n")
        if config.work_dir is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return sae


@torch.no_grad()
def _threshold(weights: dict[str, Tensor], x: Tensor, l0: int) -> float:
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    return threshold_for(pre, l0)
