"""Checks that a guardrail belongs to a model, and that its gate can fire on it."""

import math
import warnings

from torch import nn

from sae_unlearn.backbone.identity import differences
from sae_unlearn.backbone.layers import max_positions, text_config
from sae_unlearn.checks import check_integer
from sae_unlearn.errors import GuardrailError, GuardrailUnsupported
from sae_unlearn.guardrail.config import SAEGuardrailConfig


def check_belongs(config: SAEGuardrailConfig, model: nn.Module, check_base: bool = True) -> None:
    """Raise unless the guardrail was fitted on this model.

    Args:
        config (SAEGuardrailConfig): The guardrail's config.
        model (Module): The bare model.
        check_base (bool, *optional*, defaults to True): False to warn if only the weights differ.

    Raises:
        GuardrailError: If hidden size, number of layers or weights differ, or the gate could never fire.
        GuardrailUnsupported: If transformers has split the model's matrices over processes.
    """
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise GuardrailUnsupported(
            f"tp_size={model.tp_size}: expected a model that is whole in each process, since guardrails were not "
            "tested with transformers' tensor parallelism. Load it without tp_plan, or serve it with vLLM."
        )
    width, depth = text_config(model).hidden_size, text_config(model).num_hidden_layers
    origin = config.base_model_name_or_path or "another model"
    for what, expected, found in (
        ("hidden size", config.base_model.hidden_size, width),
        ("number of layers", config.base_model.num_layers, depth),
    ):
        if expected not in (None, found):
            raise GuardrailError(
                f"The guardrail is for {origin} with {what} {expected}, but {type(model).__name__} has {found}. Attach "
                "it to the model it was fitted on."
            )
    check_special(config, text_config(model).vocab_size)
    check_longest(config, max_positions(model))
    check_integer("layer", config.layer, 0, depth - 1, GuardrailError)
    recorded = config.base_model.fingerprint
    difference = None if recorded is None else differences(recorded, model, config.layer)
    if difference is None:
        return
    message = f"The guardrail was fitted on {origin}, and this is another model: {difference}."
    if check_base:
        raise GuardrailError(f"{message} If it is a fine-tuned descendant, pass check_base=False and measure again.")
    warnings.warn(message, stacklevel=3)


def check_special(config: SAEGuardrailConfig, vocabulary: int) -> None:
    """Raise if half of the vocabulary is declared special: the gate does not read special tokens.

    Raises:
        GuardrailError: If at least half of the tokens are special.
    """
    special = [token for token in config.tokens.special_ids or () if token < vocabulary]
    if 2 * len(special) >= vocabulary:
        raise GuardrailError(
            f"tokens.special_ids has {len(special)} of the model's {vocabulary} tokens, which the gate would not read. "
            "Set only BOS, EOS, PAD and similar tokens."
        )


def check_longest(config: SAEGuardrailConfig, longest: int | None) -> None:
    """Raise if the statistic of the longest text, hot throughout, does not exceed the threshold.

    Args:
        config (SAEGuardrailConfig): The guardrail's config.
        longest (int or None): Largest number of tokens that the model reads; None if unbounded.

    Raises:
        GuardrailError: If the gate could never fire. The error names the statistic and its highest value.
    """
    if config.threshold is None or longest is None:
        return
    given = config.statistic_kwargs
    if config.statistic == "windowed":
        highest = math.inf if config.hottest > given.drift else config.threshold
    else:
        highest = config.hottest * longest / max(longest, given.min_tokens)
    if highest <= config.threshold:
        raise GuardrailError(
            f"threshold={config.threshold}: expected less than {highest:.4g}, the largest statistic "
            f"{config.statistic!r} of {longest} tokens (min_tokens={given.min_tokens}, drift={given.drift}); the gate "
            "would never fire."
        )
