"""The adapter that an alignment trains: a LoRA on the blocks up to the aligned layer.

Dropout while an adapter is trained: the adapter's own, and none of the frozen model's.

Which ways of sharding a model the passes of an alignment go with.

The forward passes of a step: up to the aligned layer for entities, in full for retain rows.

Which layer is aligned.
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
from sae_unlearn.errors import AlignmentError
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.compatibility import check_sae


RANK = 8


@contextmanager
def adapter_on(model: nn.Module, peft_config: PeftConfig | None, layer: int, row: list[int]) -> Iterator[PeftModel]:
    """`model` with the adapter to train; a `PeftModel` is taken as it is.

    A LoRA is laid on the blocks up to `layer` unless its config names layers: later blocks receive nothing from the
    alignment. Without a config it is one of rank 8 on every linear module. If an error comes up inside the block, an
    adapter that was added is removed and the model is as it was given.

    Args:
        row: token ids on which the model without its adapter is compared with the model as it was given.

    Raises:
        AlignmentError: a `PeftModel` that has nothing to train, carries a guardrail, or comes with another config; an
            adapter without which the model is not what it was (see `adapter_checks`).
    """
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise AlignmentError("The model is a PeftModel already; pass the bare model, or leave peft_config out.")
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
    use_cache = getattr(config, "use_cache", None)  # which `Trainer` sets
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
        raise AlignmentError("The model carries a guardrail; train the LoRA on the bare model and attach it after.")
    check_peft_model(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AlignmentError("The PeftModel has nothing to train; load its adapter with is_trainable=True.")
    check_base_frozen(base_model_of(model))


def _up_to(peft_config: PeftConfig, layer: int) -> PeftConfig:
    """A copy of the config that lies on the blocks up to `layer`, unless it names layers itself."""
    peft_config = copy.deepcopy(peft_config)
    by_pattern = isinstance(getattr(peft_config, "target_modules", None), str) and (
        peft_config.target_modules != "all-linear"
    )
    if getattr(peft_config, "layers_to_transform", layer) is None and not by_pattern:
        peft_config.layers_to_transform = list(range(layer + 1))
    return peft_config


def require_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Raises unless some trained weight has received a gradient.

    Gradient checkpointing of frozen blocks can cut every gradient off in silence, and an adapter that lies above the
    aligned layer never gets one; both look like training.

    Raises:
        AlignmentError: every gradient is absent or zero.
    """
    if not any(p.grad is not None and bool((p.grad != 0).any()) for p in parameters if p.requires_grad):
        raise no_gradient()


def no_gradient() -> AlignmentError:
    """The error for training that trains nothing."""
    return AlignmentError(
        "No trained tensor received a gradient at the first step. Let the adapter target blocks at or below the "
        'aligned layer; with gradient checkpointing, use gradient_checkpointing_kwargs={"use_reentrant": False}.'
    )


def without_base_dropout(model: nn.Module) -> None:
    """Put a model's modules into evaluation mode until the next `train()`, all but those of its adapters.

    The loss compares with states and predictions of the base model as it is used. Dropout in either pass, as GPT-2 has
    it, would count as a change of them, at the first step as at the last. Modules that recompute their activations
    (gradient checkpointing) stay in training mode, without which they do not.
    """
    if isinstance(model, BaseTunerLayer):
        without_base_dropout(model.get_base_layer())
        return
    model.training = bool(getattr(model, "gradient_checkpointing", False)) and model.training
    for child in model.children():
        without_base_dropout(child)


def check_sharding(state: Any) -> None:
    """Passes over entities end amid the model, which skips whatever a way of sharding does after each layer.

    `torch`'s `fully_shard` (FSDP 2) is served: the pass ends after its hook, see `backbone.residual_stream`.
    ZeRO stages 1 and 2 shard gradients and the optimiser's state, and not the layers.

    Args:
        state: of the accelerator.

    Raises:
        AlignmentError: FSDP 1, or ZeRO stage 3.
    """
    if getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", 2) < 2:
        raise AlignmentError("FSDP 1 does not go with passes that end amid the model; set fsdp_version: 2.")
    if getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", 0) > 2:
        raise AlignmentError(
            "ZeRO stage 3 does not go with passes that end amid the model; take stage 2, or FSDP with fsdp_version: 2."
        )


NOT_REENTRANT = 'Set gradient_checkpointing_kwargs={"use_reentrant": False}.'


def last_states(
    model: nn.Module, bare: nn.Module, layer: int, inputs: Mapping[str, Any], with_still: bool
) -> tuple[Tensor, Tensor | None]:
    """Residual stream at the last tokens of targets and of entities that are to stay: `[rows, d_in]` each.

    Args:
        model: what is called; it wraps `bare`, which holds the layers.
        inputs: a batch of `AlignmentItems`.
        with_still: whether the entities that are to stay are run; their states are None else.

    Raises:
        AlignmentError: the layer's checkpoints would let no gradient through.
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
    """`[tokens, vocabulary]` at the places of the retain rows that count; arguments as of `last_states`."""
    wanted = inputs["retain_at"]
    with head_sees(bare, wanted) as picked:
        rows = {"input_ids": inputs["retain_ids"], "attention_mask": inputs["retain_mask"]}
        logits = model(**rows, use_cache=False).logits
    return logits[0] if picked else logits[wanted]


def _check_checkpoints(bare: nn.Module, layer: int) -> None:
    """Raise where the pass would end inside a checkpoint that has no gradients: the loss would lose these parts."""
    place = find_decoder_layers(bare)
    aligned = place.layers[layer]
    if repeats_hooks(place.backbone, aligned) and is_reentrant(place.backbone, aligned):
        raise AlignmentError(f"{version_needed('use_reentrant=True')} {NOT_REENTRANT}")


def aligned_layer(model: nn.Module, sae: SparseAutoencoder | None, args: SAEAlignmentConfig) -> int:
    """The 0-based layer that the SAE reads, or that the settings name.

    Raises:
        UnlearnError: the two differ, it is not said, or `model` has no such layer.
    """
    if sae is not None:
        return check_sae(sae, model, args.layer)
    depth = text_config(model).num_hidden_layers
    if args.layer is None:
        raise AlignmentError("Without an SAE it has to be said which layer is aligned; set layer= in the config.")
    if args.layer >= depth:
        raise AlignmentError(f"layer={args.layer}, but {type(model).__name__} has layers 0 to {depth - 1}.")
    return args.layer
