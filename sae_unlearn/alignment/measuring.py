"""`MeasuringTrainer`: measures entities in held-out templates, before and after training."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from sae_unlearn.alignment.dataset import AlignmentItems
from sae_unlearn.alignment.entities import EntitySet, as_entity_set
from sae_unlearn.alignment.loss import PartSums
from sae_unlearn.alignment.metrics import COLLAPSED, Portrait, judge, portrait_of
from sae_unlearn.alignment.publishing import PublishingTrainer
from sae_unlearn.alignment.states import States, entity_states
from sae_unlearn.alignment.ways import TargetWays
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.errors import AlignmentError


logger = logging.getLogger(__name__)


class MeasuringTrainer(PublishingTrainer):
    """The part of `SAEAlignmentTrainer` that measures entities, against the setting's held-out references."""

    _bare: nn.Module
    _ways: TargetWays
    _sums: PartSums
    _judged: AlignmentItems | None = None
    _user_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None

    def evaluate(
        self,
        eval_dataset: EntitySet | Iterable[Mapping[str, Any]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure entities in held-out templates, against held-out references and retain rows.

        Metrics in addition to `Trainer`'s, each with the prefix: `loss` and its parts `toward`, `away`, `mse`, `kl`
        (nats per token); `known_auc`, the probability that a target looks more known than a held-out unknown entity
        (0.5 is indistinguishable, and `separation` gives the value for known entities); `variance_ratio`, which below
        0.5 means that targets have collapsed toward one point; `way_left` and `way_error`, for the targets, the part
        of the way to their unknown entities that is left (1 in the base, 0 at the end) and the relative error of their
        states (0 only at the unknown entities' own); with a `retain_budget`, `budget_loss`, which is the
        loss if `kl` is within it and infinite otherwise.

        Args:
            eval_dataset (EntitySet or rows, *optional*): Other entities of the same types.
            ignore_keys (list of str, *optional*): As in `Trainer.evaluate`.
            metric_key_prefix (str, *optional*, defaults to "eval"): As in `Trainer.evaluate`.

        Returns:
            dict[str, float]: The metrics.
        """
        items: Any = eval_dataset
        if eval_dataset is not None and not isinstance(eval_dataset, AlignmentItems):
            items = self._items(as_entity_set(eval_dataset))
        self._judged = self.eval_dataset if items is None else items
        return super().evaluate(items, ignore_keys, metric_key_prefix)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of training rows.

        Raises:
            AlignmentError: If it has no batch.
        """
        loader = super().get_train_dataloader()
        if not len(loader):
            raise AlignmentError(
                f"dataloader_drop_last=True: expected at least one whole batch, got {len(self.train_dataset)} rows for "
                f"batches of {self._train_batch_size}. Set it to False, or a smaller per_device_train_batch_size."
            )
        return loader

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does, with the means of the parts of the loss."""
        evaluated = next((key for key in logs if key.endswith("_loss")), None)
        mode = "train" if "loss" in logs or evaluated is None else "eval"
        prefix = "" if mode == "train" or evaluated is None else evaluated.removesuffix("loss")
        means = self._sums.take_means(mode, lambda sums: self.accelerator.reduce(sums, "sum"))
        logs.update({prefix + part: mean for part, mean in means.items()})
        if mode == "eval" and means:
            logs[prefix + "loss"] = sum(self.args.weights[part] * mean for part, mean in means.items())
            if self.args.retain_budget is not None:
                over = logs.get(prefix + "kl", 0.0) > self.args.retain_budget
                logs[prefix + "budget_loss"] = math.inf if over else logs[prefix + "loss"]
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return a loader of all rows, even with `dataloader_drop_last`.

        Otherwise a set smaller than a batch would not be measured.

        Args:
            eval_dataset (AlignmentItems, *optional*): Other rows. None takes those of `eval_dataset`.
        """
        wanted = self.eval_dataset if eval_dataset is None else eval_dataset
        kept: dict[str, Any] = getattr(
            self, "_eval_dataloaders", {}
        )  # transformers 5.24: cached and returned for any other set
        if "eval" in kept and kept["eval"].dataset is not wanted:
            del kept["eval"]
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(wanted)
        finally:
            self.args.dataloader_drop_last = drops

    def portrait(self, entities: EntitySet | None = None) -> Portrait:
        """Return the places of held-out known and unknown entities, and of targets before and after training.

        It takes two truncated forward passes over the targets, in held-out templates.

        Args:
            entities (EntitySet, *optional*): Entities in place of the targets.

        Raises:
            AlignmentError: If the model is sharded with FSDP, whose layers run only as parts of the whole.
        """
        if self.is_fsdp_enabled:
            raise AlignmentError(
                "model: expected a whole model, got one sharded with FSDP. Save it, and load it whole."
            )
        rows = (self.eval_dataset if entities is None else self._items(entities)).targets

        def states() -> States:
            found = entity_states(self._bare, rows, self.setting.layer, self.args.reference_batch_size)
            return found.to(self.setting.codes.device)

        after = states()
        with adapters_off(self.model):
            before = states()
        return portrait_of(self.setting, before, after)

    def _items(self, entities: Any) -> AlignmentItems:
        if not isinstance(entities, EntitySet):
            raise AlignmentError(
                f"eval_dataset={entities!r:.60}: expected an EntitySet, got {type(entities).__name__}."
            )
        return self.setting.items(entities, self.processing_class, self.args, held_out=True)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        device = self.setting.codes.device
        h = torch.as_tensor(prediction.predictions, device=device)
        states = States(h, *(torch.as_tensor(part, device=device) for part in prediction.label_ids))
        found = judge(self.setting, states) | self._ways.judge(self._judged, states)
        if found["variance_ratio"] < COLLAPSED:
            logger.warning(
                "variance_ratio=%.2f: the targets have collapsed toward one point, which a refitted probe separates "
                'from unknown entities. Use toward="paired", or fewer steps.',
                found["variance_ratio"],
            )
        return found | (self._user_metrics(prediction) if self._user_metrics else {})
