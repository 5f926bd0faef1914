"""Ways in which attention implementations read the mask that reaches their kernel.

In transformers 5.16 to 5.24:

    eager, flex     add a 4-D mask to the scores; bool ones as 0 and 1
    sdpa            adds numbers, and hides where a bool mask is False
    flash           reads 2-D masks as the tokens to keep

A 2-D mask of the call itself is the padding for each of them: transformers makes of it what the kernel reads. Only an
attention function without a mask function gets none.
"""

from typing import Any

from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
    eager_mask,
    flash_attention_mask,
    flex_attention_mask,
    sdpa_mask,
)


ADDS, ADDS_OR_HIDES, TOKENS, UNKNOWN = "adds", "adds or hides", "tokens", "unknown"
"""Readings of a mask by a kernel."""

_KNOWN = {
    "eager": ADDS,
    "paged|eager": ADDS,
    "flex_attention": ADDS,
    "sdpa": ADDS_OR_HIDES,
    "flash_attention_2": TOKENS,
    "flash_attention_3": TOKENS,
    "flash_attention_4": TOKENS,
}
_BY_FUNCTION: dict[Any, str] = {
    eager_mask: ADDS,
    flex_attention_mask: ADDS,
    sdpa_mask: ADDS_OR_HIDES,
    flash_attention_mask: TOKENS,
}


def reading_of(implementation: str | None) -> str:
    """Return what the kernel of `config._attn_implementation` does with a mask, one of the names above.

    An implementation of others reads as that of transformers whose mask function is registered for it. None, of a
    config without attention, reads as sdpa.
    """
    if implementation is None:
        return ADDS_OR_HIDES
    return _KNOWN.get(implementation) or _BY_FUNCTION.get(_mask_function(implementation), UNKNOWN)


def follows_masks(implementation: str | None) -> bool:
    """Return True unless transformers gives this attention no mask, so that a 2-D one hides nothing."""
    return implementation is None or implementation in _KNOWN or _mask_function(implementation) is not None


def mask_kinds(config: Any) -> set[str] | None:
    """Return the kinds of layers of a model, each with its own mask; None if not known."""
    patterns = set(getattr(config, "layer_types", None) or ())
    if not patterns or not patterns.issubset(LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING):
        return None
    functions = {pattern: LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[pattern] for pattern in patterns}
    return {kind for name, made in functions.items() for kind in (made if isinstance(made, dict) else (name,))}


def _mask_function(implementation: str) -> Any:
    return ALL_MASK_ATTENTION_FUNCTIONS.get(implementation)
