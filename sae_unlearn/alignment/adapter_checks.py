"""Checks of an adapter: without it, the model must be the model as it was given."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sae_unlearn.backbone.adapters_off import adapters_off, base_parameters, is_adapter_module
from sae_unlearn.backbone.layers import input_device
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.errors import AlignmentError


# Prefixes of LoRA initializations that write into the base weights, so that the reference would be the remainder.
REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Methods that need calls or inputs which this trainer does not make, by peft_type.
REFUSED_TYPES = {
    "ADALORA": "its ranks are allocated by calls that this trainer does not make",
    "ADAPTION_PROMPT": "it adds tokens to the attention of each layer",
    "POLY": "it needs task_ids with every row",
    "SAE_GUARDRAIL": "a guardrail is fitted and not trained",
    "SHADOW": "it runs a second model next to the first",
    "XLORA": "it mixes adapters that were trained before",
}
# Fields of `LoraConfig` that must be empty, with the reason.
REFUSED_FIELDS = {
    "layer_replication": "it adds layers that stay without the adapter",
    "kasa_config": "it truncates the base weights",
    "monteclora_config": "it needs a term in the loss that this trainer does not have",
    "arrow_config": "it mixes adapters that were trained before",
    "alora_invocation_tokens": "prompts that end in a name do not contain them",
}
_TOLERANCE = 1e-3  # of the largest logit: kernels may round, and a rewritten base differs by more


def check_adapter_config(config: PeftConfig, name: str = "peft_config") -> None:
    """Raise unless a model without this adapter is the model as it was given.

    Args:
        config (PeftConfig): Config of the adapter.
        name (str, *optional*, defaults to "peft_config"): Name of the argument, for the error.

    Raises:
        AlignmentError: If the config is not an adapter of the weights, changes or trains the base, or needs what this
            trainer does not do. The message names the field.
    """
    if not isinstance(config, PeftConfig):
        raise AlignmentError(f"{name}={config!r:.60}: expected a PeftConfig, got {type(config).__name__}.")
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        raise AlignmentError(
            f"{name}: expected an adapter of the weights, got {kind}, which moves the place of the name by its virtual "
            "tokens. Pass a LoraConfig."
        )
    if kind in REFUSED_TYPES:
        raise AlignmentError(
            f"{name}: expected an adapter that any trainer can train, got {kind}: {REFUSED_TYPES[kind]}. Pass a "
            "LoraConfig."
        )
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.lower().startswith(REWRITING_INITS):
        raise AlignmentError(
            f"{name}.init_lora_weights={init!r}: expected one that does not change the base weights, which are the "
            'reference. Set True, "gaussian" or "orthogonal".'
        )
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise AlignmentError(
            f'{name}.bias={bias!r}: expected "none", since biases of the base that are trained would move the '
            "reference. Set lora_bias=True for biases of the adapter."
        )
    for field, reason in REFUSED_FIELDS.items():
        if getattr(config, field, None):
            raise AlignmentError(f"{name}.{field}: expected None, since {reason}. Omit it.")


def check_new_config(config: PeftConfig) -> None:
    """Run `check_adapter_config` and check what only a new adapter's config can get wrong.

    Args:
        config (PeftConfig): Config of the adapter.

    Raises:
        AlignmentError: If the adapter would be frozen, or be initialized from data that are not given.
    """
    check_adapter_config(config)
    if getattr(config, "init_lora_weights", None) == "eva":
        raise AlignmentError(
            "peft_config.init_lora_weights='eva': expected an adapter that is initialized without data. Pass the "
            "PeftModel after initialize_lora_eva_weights, or set True."
        )
    if config.inference_mode:
        raise AlignmentError("peft_config.inference_mode=True: expected False, got a frozen adapter. Set it to False.")


def check_bare(model: nn.Module) -> None:
    """Raise if a model that is not a `PeftModel` carries adapters.

    The new adapter would be trained on top of them.

    Args:
        model (nn.Module): The model.

    Raises:
        AlignmentError: If it carries adapters.
    """
    if any(is_adapter_module(part) for part in model.modules()):
        raise AlignmentError(
            f"model: expected a {type(model).__name__} without adapters, got one with some. Merge or unload them "
            "first, or pass a PeftModel."
        )


def check_peft_model(model: PeftModel) -> None:
    """Raise unless the model without its one active adapter is the model as it was given.

    Args:
        model (PeftModel): The model.

    Raises:
        AlignmentError: If another adapter is active, merged, disabled or on top of it, or a config is not supported.
    """
    bare = model.get_base_model()
    for name, config in model.peft_config.items():
        check_adapter_config(config, f"peft_config[{name!r}]")
    if isinstance(bare, PeftModel):
        raise AlignmentError("model: expected a PeftModel around a transformers model, got two of them. Unload one.")
    if len(active := model.active_adapters) != 1:
        raise AlignmentError(
            f"model: expected one active adapter, got {', '.join(map(repr, active)) or 'none'}. Call set_adapter with "
            "the one to train, and merge the others into the base if they are to count."
        )
    for part in model.modules():
        if not is_adapter_module(part):
            continue
        if part.disable_adapters:
            raise AlignmentError("model: expected an enabled adapter, got a disabled one. Enable it.")
        if isinstance(part, BaseTunerLayer):
            if part.merged:
                raise AlignmentError(
                    f"model: expected adapters that are not merged, got {part.merged_adapters}. Call unmerge_adapter()."
                )
            if isinstance(getattr(part, "base_layer", None), BaseTunerLayer):
                raise AlignmentError("model: expected one layer of adapters, got adapters on adapters. Merge them.")


def check_base_frozen(bare: nn.Module) -> None:
    """Raise if a parameter of the base is trainable, since the reference would change with it.

    Args:
        bare (nn.Module): The transformers model with its adapters, not the `PeftModel` around it.

    Raises:
        AlignmentError: If there is such a parameter. The message names it.
    """
    trained = [name for name, parameter in base_parameters(bare) if parameter.requires_grad]
    if trained:
        raise AlignmentError(
            f"model: expected a frozen base, got {len(trained)} trainable parameters of it, such as {trained[0]}. Call "
            "requires_grad_(False) on them, or add the module to modules_to_save."
        )


class AsGiven:
    """Predictions of a model as it was given, to compare with those without its new adapter.

    Args:
        bare (nn.Module): The transformers model without adapters.
        row (list of int): Token ids of one text.
    """

    def __init__(self, bare: nn.Module, row: list[int]) -> None:
        self._bare, self._row = bare, row
        self._logits = self._predictions()

    def check(self, config: PeftConfig) -> None:
        """Raise unless the model without its adapter still predicts the same.

        Raises:
            AlignmentError: If it does not. The weights of the base are then changed and cannot be restored.
        """
        with adapters_off(self._bare):
            now = self._predictions()
        largest = self._logits.abs().max()
        if now.shape != self._logits.shape or not bool(((now - self._logits).abs() <= _TOLERANCE * largest).all()):
            raise AlignmentError(
                f"peft_config: expected an adapter that leaves the base alone, got a {type(config).__name__} that "
                f"changed its predictions ({_changed_fields(config)}). Load the model again and pass a plain "
                "LoraConfig."
            )

    def _predictions(self) -> Tensor:
        ids = torch.tensor([self._row], device=input_device(self._bare))
        run: Callable[..., Any] = self._bare
        with torch.no_grad(), evaluation_mode(self._bare):
            logits: Tensor = run(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits.float()


def _changed_fields(config: PeftConfig) -> str:
    """Names of the fields of a config that differ from the defaults of its class."""
    default: Mapping[str, Any] = vars(type(config)())
    return ", ".join(name for name, value in vars(config).items() if name in default and value != default[name])[:80]
