"""The adapter that an alignment trains: a LoRA on the blocks up to the aligned layer."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

from sae_unlearn.alignment.errors import AlignmentError


RANK = 8


def with_adapter(model: nn.Module, peft_config: PeftConfig | None, layer: int) -> PeftModel:
    """`model` with the adapter to train; a `PeftModel` is taken as it is.

    A LoRA is laid on the blocks up to `layer` unless its config names layers: later blocks receive nothing from the
    alignment. Without a config it is one of rank 8 on every linear module.

    Raises:
        AlignmentError: a `PeftModel` that has nothing to train, carries a guardrail, or comes with another config.
    """
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise AlignmentError("The model is a PeftModel already; pass the bare model, or leave peft_config out.")
        if any(str(getattr(c.peft_type, "value", c.peft_type)) == "SAE_GUARDRAIL" for c in model.peft_config.values()):
            raise AlignmentError("The model carries a guardrail; train the LoRA on the bare model and attach it after.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise AlignmentError("The PeftModel has nothing to train; load its adapter with is_trainable=True.")
        return model
    if peft_config is None:
        peft_config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_config = copy.deepcopy(peft_config)
    by_pattern = isinstance(getattr(peft_config, "target_modules", None), str) and (
        peft_config.target_modules != "all-linear"
    )
    if getattr(peft_config, "layers_to_transform", layer) is None and not by_pattern:
        peft_config.layers_to_transform = list(range(layer + 1))
    return get_peft_model(model, peft_config)


@contextmanager
def adapter_on(model: nn.Module, peft_config: PeftConfig | None, layer: int) -> Iterator[PeftModel]:
    """`with_adapter`, taken back if an error comes up inside: the model is then as it was given."""
    if isinstance(model, PeftModel):
        yield with_adapter(model, peft_config, layer)
        return
    frozen = {parameter: not parameter.requires_grad for parameter in model.parameters()}
    tuned = with_adapter(model, peft_config, layer)
    try:
        yield tuned
    except BaseException:
        tuned.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        for parameter, was_frozen in frozen.items():
            parameter.requires_grad_(not was_frozen)
        raise


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
