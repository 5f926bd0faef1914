"""The adapter that an alignment trains: a LoRA on the layers up to the aligned one.

Also its forward passes, dropout during training, support of sharded models, and the choice of the aligned layer.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sae_unlearn.alignment.adapter_checks import (
    AsGiven,
    check_bare,
    check_base_frozen,
    check_new_config,
    check_peft_model,
)
from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.backbone.checkpointing import is_reentrant, repeats_hooks, version_needed
from sae_unlearn.backbone.layers import base_model_of, find_decoder_layers, text_config
from sae_unlearn.backbone.logits import head_sees
from sae_unlearn.backbone.residual_stream import truncated
from sae_unlearn.checks import check_integer
from sae_unlearn.errors import AlignmentError
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.compatibility import check_sae


RANK = 8


@contextmanager
def adapter_on(model: nn.Module, peft_config: PeftConfig | None, layer: int, row: list[int]) -> Iterator[PeftModel]:
    """Give `model` with the adapter to train inside the `with` block. A `PeftModel` is used as it is.

    A LoRA covers the layers up to `layer` unless its config names layers: later layers receive no gradient from the
    alignment. Without a config it has rank 8 and covers every linear module. If an error is raised inside the block, an
    added adapter is removed and the model is as it was given.

    Args:
        model (nn.Module): A causal language model or a `PeftModel`.
        peft_config (PeftConfig or None): Config of the adapter.
        layer (int): 0-based index of the aligned layer.
        row (list of int): Token ids on which the model without its adapter is compared with the given model.

    Raises:
        AlignmentError: If a `PeftModel` has nothing to train, carries a guardrail, or comes with another config; or if
            the model without the adapter is not the given model (see `adapter_checks`).
    """
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise AlignmentError(
                "peft_config: expected None, since the model is a PeftModel. Pass the bare model, or omit peft_config."
            )
        _check_given(model)
        yield model
        return
    check_bare(model)
    if peft_config is None:
        peft_config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    check_new_config(peft_config)
    bare = base_model_of(model)
    given = AsGiven(bare, row)
    frozen = {parameter: not parameter.requires_grad for parameter in model.parameters()}
    config: Any = bare.config
    use_cache = getattr(config, "use_cache", None)  # `Trainer` sets it
    tuned = get_peft_model(model, _up_to(peft_config, layer))
    try:
        given.check(peft_config)
        check_base_frozen(bare)
        yield tuned
    except BaseException:
        tuned.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        for parameter, was_frozen in frozen.items():
            parameter.requires_grad_(not was_frozen)
        if use_cache is not None:
            config.use_cache = use_cache
        raise


def _check_given(model: PeftModel) -> None:
    if any(str(getattr(c.peft_type, "value", c.peft_type)) == "SAE_GUARDRAIL" for c in model.peft_config.values()):
        raise AlignmentError(
            "model: expected no guardrail on it. Train the LoRA on the bare model, and attach the guardrail afterwards."
        )
    check_peft_model(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AlignmentError(
            "model: expected a PeftModel with trainable weights. Load its adapter with is_trainable=True."
        )
    check_base_frozen(base_model_of(model))


def _up_to(peft_config: PeftConfig, layer: int) -> PeftConfig:
    """A copy of the config that covers the layers up to `layer`, unless it names layers."""
    peft_config = copy.deepcopy(peft_config)
    by_pattern = isinstance(getattr(peft_config, "target_modules", None), str) and (
        peft_config.target_modules != "all-linear"
    )
    if getattr(peft_config, "layers_to_transform", layer) is None and not by_pattern:
        peft_config.layers_to_transform = list(range(layer + 1))
    return peft_config


def require_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Raise unless some trained weight has received a gradient.

    Gradient checkpointing of frozen layers can cut off every gradient silently, and an adapter above the aligned layer
    never gets one. Both look like training.

    Raises:
        AlignmentError: If every gradient is absent or zero.
    """
    if not any(p.grad is not None and bool((p.grad != 0).any()) for p in parameters if p.requires_grad):
        raise no_gradient()


def no_gradient() -> AlignmentError:
    """Return the error for training that changes nothing."""
    return AlignmentError(
        "peft_config: expected a gradient at the first step, got none. Target layers at or below the aligned one; with "
        'gradient checkpointing, set gradient_checkpointing_kwargs={"use_reentrant": False}.'
    )


def without_base_dropout(model: nn.Module) -> None:
    """Put a model's modules into evaluation mode until the next `train()`, except those of its adapters.

    The loss compares with states and predictions of the base model in evaluation mode. Dropout in either pass, as in
    GPT-2, would count as a change of them at every step. Modules that recompute their activations (gradient
    checkpointing) stay in training mode, which they need.
    """
    if isinstance(model, BaseTunerLayer):
        without_base_dropout(model.get_base_layer())
        return
    model.training = bool(getattr(model, "gradient_checkpointing", False)) and model.training
    for child in model.children():
        without_base_dropout(child)


def check_sharding(state: Any) -> None:
    """Raise if a way of sharding does not support passes that end inside the model.

    Passes over entities skip what a way of sharding runs after each later layer. `torch`'s `fully_shard` (FSDP 2) is
    supported: the pass ends after its hook, see `backbone.residual_stream`. ZeRO stages 1 and 2 shard gradients and the
    optimizer's state, and not the layers.

    Args:
        state (Any): State of the accelerator.

    Raises:
        AlignmentError: If it is FSDP 1 or ZeRO stage 3.
    """
    if getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", 2) < 2:
        raise AlignmentError(
            "fsdp_version=1: expected 2, since passes over entities end inside the model. Set fsdp_version: 2."
        )
    if getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", 0) > 2:
        raise AlignmentError(
            "zero_stage=3: expected at most 2, since passes over entities end inside the model. Set stage 2, "
            "or use FSDP 2."
        )


NOT_REENTRANT = 'Set gradient_checkpointing_kwargs={"use_reentrant": False}.'


def last_states(
    model: nn.Module, bare: nn.Module, layer: int, inputs: Mapping[str, Any], with_still: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the residual stream at the last tokens of targets and of retained entities.

    Args:
        model (nn.Module): The model to call, which wraps `bare`.
        bare (nn.Module): The transformers model with the layers.
        layer (int): 0-based index of the aligned layer.
        inputs (mapping): A batch of `AlignmentItems`.
        with_still (bool): Run the retained entities. If False, their states are None.

    Returns:
        `[rows, d_in]` each.

    Raises:
        AlignmentError: If the layer's checkpoints would pass no gradient.
    """
    _check_checkpoints(bare, layer)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if with_still:
        width = max(ids.shape[1], inputs["still_ids"].shape[1])
        both = zip((ids, mask), (inputs["still_ids"], inputs["still_mask"]), strict=True)
        ids, mask = (torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in pair]) for pair in both)
    with truncated(bare, layer):
        residual = model(input_ids=ids, attention_mask=mask, use_cache=False)
    last = residual[torch.arange(len(ids), device=residual.device), mask.sum(dim=1).to(residual.device) - 1]
    if not with_still:
        return last, None
    h, still = last.split([len(inputs["input_ids"]), len(inputs["still_ids"])])
    return h, still


def retain_logits(model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the logits at the compared places of the retain rows, `[tokens, vocabulary]`.

    The arguments are those of `last_states`.
    """
    wanted = inputs["retain_at"]
    with head_sees(bare, wanted) as picked:
        rows = {"input_ids": inputs["retain_ids"], "attention_mask": inputs["retain_mask"]}
        logits = model(**rows, use_cache=False).logits
    return logits[0] if picked else logits[wanted]


def _check_checkpoints(bare: nn.Module, layer: int) -> None:
    """Raise if the pass would end inside a checkpoint without gradients.

    The loss would lose these parts.
    """
    place = find_decoder_layers(bare)
    aligned = place.layers[layer]
    if repeats_hooks(place.backbone, aligned) and is_reentrant(place.backbone, aligned):
        raise AlignmentError(f"{version_needed('use_reentrant=True')} {NOT_REENTRANT}")


def aligned_layer(model: nn.Module, sae: SparseAutoencoder | None, args: SAEAlignmentConfig) -> int:
    """Return the 0-based layer that the SAE reads, or that the settings name.

    Raises:
        UnlearnError: If the two differ, neither is given, or `model` has no such layer.
    """
    if sae is not None:
        return check_sae(sae, model, args.layer)
    depth = text_config(model).num_hidden_layers
    if args.layer is None:
        raise AlignmentError("layer=None: expected a layer, since sae=None. Set layer= in the config.")
    return check_integer("layer", args.layer, 0, depth - 1, AlignmentError)
