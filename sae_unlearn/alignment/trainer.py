"""The trainer of an alignment, a `Trainer` of transformers."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from sae_unlearn.alignment.adapter import (
    NOT_REENTRANT,
    adapter_on,
    aligned_layer,
    check_sharding,
    last_states,
    no_gradient,
    require_gradients,
    retain_logits,
    without_base_dropout,
)
from sae_unlearn.alignment.adapter_checks import check_base_frozen
from sae_unlearn.alignment.callbacks import RetainBudgetCallback
from sae_unlearn.alignment.card import AlignmentCard
from sae_unlearn.alignment.closed_form.of_trainer import closed_form_lora, solve_for
from sae_unlearn.alignment.closed_form.solve import Solution
from sae_unlearn.alignment.closed_form.sweep import TargetRows
from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.dataset import collate
from sae_unlearn.alignment.entities import EntitySet, as_entity_set
from sae_unlearn.alignment.latents import Latents, Separation
from sae_unlearn.alignment.loss import TOWARD, PartSums, away_part, count_of, counts_of, hidden_mse, kl_to_base
from sae_unlearn.alignment.measuring import MeasuringTrainer
from sae_unlearn.alignment.reference import AlignmentSetting
from sae_unlearn.alignment.split import plan_entities
from sae_unlearn.alignment.ways import TargetWays
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.backbone.checkpointing import HOOKS_OUTSIDE, version_needed
from sae_unlearn.backbone.layers import base_model_of, check_module
from sae_unlearn.backbone.private_api import loaded_from
from sae_unlearn.cards.provenance import card_base, public_source
from sae_unlearn.errors import AlignmentError
from sae_unlearn.sae import SparseAutoencoder


logger = logging.getLogger(__name__)


class SAEAlignmentTrainer(MeasuringTrainer):
    """Finds a LoRA that makes targets look like unknown entities, in closed form or by training.

    With `init="closed_form"`, the default, `train` solves for the LoRA with forward passes only: see `solve_alignment`.
    With `init="zero"`, and for `max_steps` steps after a solution, it is trained in the latent space of an SAE on

        loss = toward_weight * toward(z) + away_weight * away(z) + mse_weight * mse + kl_weight * kl

    with `z` the SAE pre-activations of selected latents at the last token of a target's name, after the aligned layer.
    `toward` draws them to those of unknown entities of the same type in the same template, `away` keeps them from
    looking known. `mse` and `kl` keep the hidden states of other entities and the predictions on retain rows at those
    of the base model, which is the same model with its adapters disabled. Each part is a mean over the rows (`kl`: the
    tokens) of an optimizer step, whatever the number of accumulation steps and processes.

    After Yamashita et al. 2025 (arXiv 2509.15631), of whose paper only the abstract was available, and Ferrando et al.
    2024 (arXiv 2411.14257) on the difference between known and unknown entities. The result is an ordinary PEFT
    adapter.

    Prompts of targets run only up to the aligned layer. Retain rows run in full, and are skipped if `kl_weight` is 0.
    The base model's own dropout is off during training, the adapter's is on.

    Args:
        model (PreTrainedModel or PeftModel): A causal language model, or a `PeftModel` whose adapter is trained.
        args (SAEAlignmentConfig): The settings.
        train_dataset (EntitySet or rows): The targets to forget. Rows, such as a `datasets.Dataset`, have the columns
            `entity`, `entity_type` and `attributes`.
        eval_dataset (EntitySet or rows, *optional*): Entities for `evaluate`, in held-out templates. None takes the
            targets.
        processing_class (PreTrainedTokenizerFast): The tokenizer.
        compute_metrics (Callable, *optional*): Called as in `Trainer`, with predictions `[rows, d_in]`, the residual
            stream, and label ids (number of the entity, number of its template). Its result is added to the metrics.
        callbacks (list, *optional*): As in `Trainer`.
        optimizers (tuple, *optional*, defaults to (None, None)): As in `Trainer`.
        peft_config (LoraConfig, *optional*): The adapter. None is a LoRA of rank 16 on the output projections of the
            MLPs of `solve_layers`; with `init="zero"` one of rank 8 on every linear module of the layers up to the
            aligned one.
        sae (SparseAutoencoder or None): An autoencoder of one of the model's layers. None aligns the raw hidden states,
            the control that shows the effect of the SAE; it needs `args.layer`.
        known (EntitySet or rows): Entities that the model knows, of the targets' types, without any target.
        unknown (EntitySet or rows): Entities that it does not know, of the same types (see `label_entities`).
        retain_dataset (iterable, *optional*): Ordinary text (list of strings, dataset with a "text" column, batches of
            token ids). A tenth is kept for evaluation. None compares predictions only on questions about known
            entities' attributes.

    Attributes:
        separation (Separation): AUC of the codes on known and unknown entities that had no part in choosing them.
        latents (Latents or None): The selected latents. None without an SAE.
        setting (AlignmentSetting): The frozen references.

    Raises:
        AlignmentError: If entities, latents or settings cannot be used. The message says how to correct them.
    """

    # compute_loss divides by the counts of the whole accumulation window.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: SAEAlignmentConfig,
        *,
        train_dataset: EntitySet | Iterable[Mapping[str, Any]],
        eval_dataset: EntitySet | Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
        sae: SparseAutoencoder | None,
        known: EntitySet | Iterable[Mapping[str, Any]],
        unknown: EntitySet | Iterable[Mapping[str, Any]],
        retain_dataset: Any = None,
    ) -> None:
        if not isinstance(args, SAEAlignmentConfig):
            raise AlignmentError(f"args: expected a SAEAlignmentConfig, got {type(args).__name__}.")
        train_dataset, known, unknown = map(as_entity_set, (train_dataset, known, unknown))
        eval_dataset = None if eval_dataset is None else as_entity_set(eval_dataset)
        _check_checkpoints(args)
        check_module(model)
        bare = base_model_of(model)
        layer = aligned_layer(bare, sae, args)
        plan = plan_entities(train_dataset, known, unknown, retain_dataset, processing_class, args)
        if args.init == "closed_form" and peft_config is None and not isinstance(model, PeftModel):
            peft_config = closed_form_lora(bare, args, layer, plan.rows[0].input_ids)
        self.solution: Solution | None = None
        with adapter_on(model, peft_config, layer, plan.rows[0].input_ids) as model:
            if args.gradient_checkpointing:
                model.enable_input_require_grads()  # otherwise reentrant checkpoints of frozen layers pass no gradient
            self._user_metrics = compute_metrics
            self._sums = PartSums()
            self._gradients_seen = False
            super().__init__(
                model=model,
                args=args,
                data_collator=collate,
                eval_dataset=[],  # the real one needs the model on its final device
                processing_class=processing_class,
                compute_metrics=self._metrics,
                callbacks=callbacks,
                optimizers=optimizers,
            )
            if args.n_gpu > 1 and args.world_size == 1:
                raise AlignmentError(
                    f"n_gpu={args.n_gpu}: expected one GPU per process. Start one process for each with "
                    "`accelerate launch`, or set CUDA_VISIBLE_DEVICES=0."
                )
            check_sharding(self.accelerator.state)
            self.label_names = ["entity", "group"]  # so that evaluation computes a loss
            self._bare = bare
            base = card_base(loaded_from(bare.config))
            source = None if sae is None else public_source(sae.source)
            self._card = AlignmentCard(base, source, license=args.license)
            training = model.training
            with adapters_off(model):
                self.setting = AlignmentSetting(plan, bare, processing_class, sae, layer, args)
            model.train(training)
            self.setting.to(args.device)
            logger.info("Separation on held-out entities: %s", self.separation)
            self.separation.require(args.min_separation)
            self.train_dataset = self.setting.items(train_dataset, processing_class, args, held_out=False)
            with adapters_off(model):
                self._ways = TargetWays(train_dataset, self.train_dataset, self.setting, bare, processing_class, args)
            self.eval_dataset = self._items(train_dataset if eval_dataset is None else eval_dataset)
            self._toward, self._away = TOWARD[str(args.toward)], away_part(str(args.away), str(args.toward))
            if args.retain_budget is not None:
                self.add_callback(RetainBudgetCallback(args.retain_budget))

    @property
    def separation(self) -> Separation:
        """AUC of the codes on known and unknown entities that had no part in choosing them."""
        return self.setting.separation

    @property
    def latents(self) -> Latents | None:
        """The selected latents. None without an SAE."""
        return self.setting.latents

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does. With `init="closed_form"` first solve for the LoRA.

        `solution` is then the `Solution`, and the logs have its numbers. Nothing is solved if a checkpoint is resumed.

        Args:
            resume_from_checkpoint (str or bool, *optional*): As in `Trainer.train`.
            args (Any): As in `Trainer.train`.
            kwargs: As in `Trainer.train`.

        Returns:
            `TrainOutput`: As from `Trainer.train`.

        Raises:
            AlignmentError: With `init="closed_form"`, if the model is sharded or `solve_alignment` refuses it, or a
                checkpoint is to be resumed without `max_steps`.
        """
        if self.args.solves_only and resume_from_checkpoint:
            raise AlignmentError(
                f"resume_from_checkpoint={resume_from_checkpoint!r:.80}: expected steps to resume, and "
                'init="closed_form" takes none. Omit it, or set max_steps or init="zero" as in that run.'
            )
        if self.args.init == "closed_form" and not resume_from_checkpoint:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise AlignmentError(
                    'init="closed_form": expected a model that neither FSDP nor DeepSpeed prepares. Run it without '
                    'them, or set init="zero".'
                )
            ways = self._ways.training
            rows = TargetRows(
                [r.input_ids for r in ways.rows], ways.base, ways.unknown, self.setting.spread, self.setting.layer
            )
            adapter = self.accelerator.unwrap_model(self.model).active_adapters[0]
            self.solution = solve_for(self._bare, adapter, self.setting, rows, self.processing_class, self.args)
        found = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.solution is not None:
            self.log(self.solution.to_dict())
        return found

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the loss; with `return_outputs` also the states `[rows, d_in]` of the targets, as "h"."""
        weights = self.args.weights
        mode = "train" if model.training else "eval"
        if mode == "train":
            without_base_dropout(self._bare)  # `Trainer` has just enabled it
        sums: dict[str, Tensor] = {}
        h, still = last_states(model, self._bare, self.setting.layer, inputs, with_still=weights["mse"] > 0)
        z = self.setting.code(h)
        at = self.setting.standing(z, inputs["group"], inputs["pair"], inputs["contrast"], held_out=mode == "eval")
        sums["toward"], sums["away"] = self._toward(at).sum(), self._away(at).sum()
        if still is not None:
            base = self.setting.states.h[inputs["still"]]
            sums["mse"] = hidden_mse(still, base, self.setting.spread).sum()
        if weights["kl"] > 0:
            sums["kl"] = self._kl(model, inputs)
        own = counts_of(inputs)
        counts = own if num_items_in_batch is None else num_items_in_batch
        loss = sum(weights[part] * value / count_of(part, counts).clamp(min=1) for part, value in sums.items())
        if mode == "train" and not loss.requires_grad:
            raise no_gradient()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # counted over all processes, whose gradients are averaged
            loss = loss * self.accelerator.num_processes
        self._sums.add(mode, sums, own)
        return (loss, {"loss": loss, "h": h.float()}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of a step, after the first one with a check that the adapter got gradients."""
        if not self._gradients_seen:
            check_base_frozen(self._bare)  # again: user code may have unfrozen it since
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not self._gradients_seen and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            require_gradients(model.parameters())
        self._gradients_seen = True
        return loss

    def _kl(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with torch.no_grad(), adapters_off(model):
            base = retain_logits(model, self._bare, inputs)
        return kl_to_base(base, retain_logits(model, self._bare, inputs))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        counts = torch.stack([counts_of(batch) for batch in batch_samples]).sum(dim=0).to(device)
        across = self.args.world_size > 1 and self.args.average_tokens_across_devices
        return self.accelerator.reduce(counts, "sum") if across else counts


def _check_checkpoints(args: SAEAlignmentConfig) -> None:
    """Check as `adapter.last_states` does at the first step, before anything is computed."""
    reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
    if args.gradient_checkpointing and reentrant and not HOOKS_OUTSIDE:
        raise AlignmentError(f"{version_needed(f'use_reentrant={reentrant}')} {NOT_REENTRANT}")
