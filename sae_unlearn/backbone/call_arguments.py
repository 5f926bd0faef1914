"""The arguments of a call of a transformers model, by name.

transformers 5.24 renamed `past_key_values` and Mamba's `cache_params` to `cache`. Models written for earlier versions
keep the old names.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from sae_unlearn.errors import GuardrailUnsupported


CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of the argument for a transformers `Cache`, the newest first."""

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def cache_name(model: nn.Module) -> str | None:
    """Return the name under which `model.forward` takes its cache, or None if it takes no cache.

    Args:
        model (nn.Module): The bare transformers model, not a `PeftModel` around it.
    """
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in accepted), None)


def cache_of(output: Mapping[str, Any]) -> Cache | None:
    """Return the transformers `Cache` in the output of a model, under any name; None if it has none.

    Args:
        output (Mapping[str, Any]): Output of the model, a `ModelOutput`.
    """
    return next((value for value in output.values() if isinstance(value, Cache)), None)


def knows_length(cache: Cache) -> bool:
    """Return True if a cache counts its tokens. One with only recurrent layers (Mamba) does not."""
    return any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def positional_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that `function` takes by position, in order."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in _BY_POSITION]


def by_name(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name.

    Args:
        names (list[str]): The arguments that the function takes by position, see `positional_names`.
        args (tuple[Any, ...]): The positional arguments of the call.
        kwargs (dict[str, Any]): The keyword arguments of the call.

    Raises:
        GuardrailUnsupported: If an argument was passed by position whose name is unknown.
    """
    if len(args) > len(names):
        raise GuardrailUnsupported(
            f"args={len(args)} values: expected at most {len(names)} by position ({', '.join(names)}). "
            "Pass the others by name."
        )
    return {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
