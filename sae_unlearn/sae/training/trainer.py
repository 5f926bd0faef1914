"""SAELens' BatchTopK trainer, on activations from disk."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.files.atomic import write_whole
from sae_unlearn.install import install_command
from sae_unlearn.sae.training.folding import Standardization
from sae_unlearn.sae.training.harvest import Activations
from sae_unlearn.sae.training.plan import TrainingPlan


THRESHOLD_LR = 0.05  # SAELens' own 0.01 lags behind in so short a training
CHECKPOINTS = 4
TIMED_STEPS = 4
SETTINGS = "training.json"

logger = logging.getLogger(__name__)


def sae_lens() -> Any:
    """The package SAELens.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    try:
        import sae_lens
    except ImportError as error:
        raise ImportError(f"Training an SAE needs `sae-lens`; run: {install_command('sae')}") from error
    return sae_lens


def train(
    activations: Activations,
    kept: Tensor,
    by: Standardization,
    plan: TrainingPlan,
    folder: Path,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train on standardized activations, from the last checkpoint on, and return the weights.

    A training of other sizes or steps than the one that left the checkpoint starts again.

    Args:
        activations (Activations): On disk.
        kept (Tensor): Numbers of the tokens to train on.
        by (Standardization): What they are standardized by.
        plan (TrainingPlan): Sizes and steps.
        folder (Path): Gets `checkpoints/` and the settings that they are of.
        batch_size (int): Tokens of a step.
        learning_rate (float): At the beginning; a tenth of it at the end.
        seed (int): Of the order of the tokens, and of the first weights.
        progress (bool, *optional*, defaults to True): Show a bar.

    Returns:
        `dict[str, Tensor]`: `W_enc`, `b_enc`, `W_dec`, `b_dec`.
    """
    torch.manual_seed(seed)

    def batches() -> Iterator[Tensor]:
        while True:
            order = kept[torch.randperm(len(kept))]
            for start in range(0, max(1, len(order) - batch_size + 1), batch_size):
                yield by(activations.tokens(order[start : start + batch_size]))

    about = {"plan": asdict(replace(plan, seconds=None)), "tokens": len(kept), "batch_size": batch_size}
    about |= {"learning_rate": learning_rate, "seed": seed}
    if not _same(folder / SETTINGS, about):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / SETTINGS, json.dumps(about))
    checkpoints = sorted((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for checkpoint in [*reversed(checkpoints), None]:
        try:
            sae, trainer = _trainer(plan, batches(), batch_size, learning_rate, plan.steps, folder, checkpoint)
            break
        except Exception as error:  # an interrupt may leave a checkpoint in part, which torch and SAELens read in vain
            if checkpoint is None:
                raise
            logger.warning("The checkpoint %s cannot be read (%s).", checkpoint.name, type(error).__name__)
    with _bar(progress):
        trainer.fit()
    return {name: getattr(sae, name).detach().clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


@contextmanager
def _bar(shown: bool) -> Iterator[None]:
    """Show or hide the trainer's progress bar, for which it has no option."""
    sae_lens()
    from sae_lens.training import sae_trainer

    before = sae_trainer.tqdm
    sae_trainer.tqdm = partial(before, disable=not shown)
    try:
        yield
    finally:
        sae_trainer.tqdm = before


def _same(file: Path, about: dict[str, Any]) -> bool:
    """Return True if the settings in the file are these."""
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")) == about)
    except (OSError, ValueError):
        return False


def seconds_per_step(plan: TrainingPlan, batch_size: int, folder: Path) -> float:
    """Seconds of a training step, measured on random activations of that size."""
    place = folder / "timing"

    def batches() -> Iterator[Tensor]:
        while True:
            yield torch.randn(batch_size, plan.d_in)

    times = []
    for steps in (1, 1 + TIMED_STEPS):  # the first pays for what is set up once
        _, trainer = _trainer(plan, batches(), batch_size, 1e-3, steps, place, None)
        started = time.monotonic()
        with _bar(False):
            trainer.fit()
        times.append(time.monotonic() - started)
    shutil.rmtree(place, ignore_errors=True)
    return max(1e-6, (times[1] - times[0]) / TIMED_STEPS)


def _trainer(
    plan: TrainingPlan,
    batches: Iterator[Tensor],
    batch_size: int,
    learning_rate: float,
    steps: int,
    folder: Path,
    checkpoint: Path | None,
) -> tuple[Any, Any]:
    lens = sae_lens()
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        device="cpu",
        lr=learning_rate,
        lr_end=learning_rate / 10,
        lr_warm_up_steps=min(50, steps // 4),
        lr_decay_steps=steps // 3,
        dead_feature_window=100,
        feature_sampling_window=200,
        n_checkpoints=CHECKPOINTS if steps >= 100 else 0,
        checkpoint_path=str(folder / "checkpoints"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    if checkpoint is not None:
        sae = lens.BatchTopKTrainingSAE.load_from_disk(str(checkpoint), device="cpu")
    else:
        about = lens.BatchTopKTrainingSAEConfig(
            d_in=plan.d_in,
            d_sae=plan.d_sae,
            k=plan.l0,
            topk_threshold_lr=THRESHOLD_LR,
            normalize_activations="none",
            dtype="float32",
            device="cpu",
        )
        sae = lens.BatchTopKTrainingSAE(about)
    trainer = SAETrainer(config, sae, batches)
    if checkpoint is not None:
        trainer.load_trainer_state(checkpoint)
    return sae, trainer
