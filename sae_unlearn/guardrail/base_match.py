"""Does a guardrail belong to this model, and can its gate ever fire there?"""

import math
import warnings

from torch import nn

from sae_unlearn.backbone.identity import differences
from sae_unlearn.backbone.layers import max_positions, text_config
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig


def check_belongs(config: SAEGuardrailConfig, model: nn.Module, check_base: bool = True) -> None:
    """Raise unless the guardrail was made for this model.

    Raises:
        GuardrailError: naming what differs: hidden size, layers, or the weights; or a gate that could never fire on it.
    """
    width, depth = text_config(model).hidden_size, text_config(model).num_hidden_layers
    origin = config.base_model_name_or_path or "another model"
    for what, expected, found in (
        ("hidden size", config.base_model.hidden_size, width),
        ("number of layers", config.base_model.num_layers, depth),
    ):
        if expected not in (None, found):
            raise GuardrailError(
                f"The guardrail is for {origin} with {what} {expected}, but {type(model).__name__} has {found}; use it "
                "on the model it was fitted on."
            )
    check_special(config, text_config(model).vocab_size)
    check_longest(config, max_positions(model))
    if config.layer >= depth:
        raise GuardrailError(f"layer={config.layer}, but {type(model).__name__} has {depth} layers, 0 to {depth - 1}.")
    recorded = config.base_model.fingerprint
    difference = None if recorded is None else differences(recorded, model, config.layer)
    if difference is None:
        return
    message = f"The guardrail was fitted on {origin}, and this model is not it: {difference}."
    if check_base:
        raise GuardrailError(f"{message} If it is a descendant of it, pass check_base=False, and measure again.")
    warnings.warn(message, stacklevel=3)


def check_special(config: SAEGuardrailConfig, vocabulary: int) -> None:
    """Raise if half of the vocabulary is declared special, which the gate does not look at.

    Raises:
        GuardrailError: naming how many tokens are.
    """
    special = [token for token in config.tokens.special_ids or () if token < vocabulary]
    if 2 * len(special) >= vocabulary:
        raise GuardrailError(
            f"tokens.special_ids names {len(special)} of the model's {vocabulary} tokens, which the gate would not "
            "look at; name BOS, EOS, PAD and the like only."
        )


def check_longest(config: SAEGuardrailConfig, longest: int | None) -> None:
    """Raise if the longest text that the model reads, hot throughout, stays below the threshold.

    Args:
        longest: its tokens; None if there is no bound.

    Raises:
        GuardrailError: naming the statistic and its highest value.
    """
    if config.threshold is None or longest is None:
        return
    given = config.statistic_kwargs
    whole = config.hottest * longest / max(longest, given.min_tokens)
    highest = {
        "ratio": whole,
        "window": config.hottest * min(longest, given.window) / min(max(longest, given.min_tokens), given.window),
        "cusum": longest * (config.hottest - given.drift),
        "ratio_or_window": whole,
        "windowed": math.inf if config.hottest > given.drift else config.threshold,
    }[config.statistic]
    if highest <= config.threshold:
        raise GuardrailError(
            f"threshold={config.threshold}: the model reads at most {longest} tokens, on which the statistic "
            f"{config.statistic!r} stays at {highest:.4g} or below (min_tokens={given.min_tokens}, "
            f"drift={given.drift}): the gate would never fire."
        )
