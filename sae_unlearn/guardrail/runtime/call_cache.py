"""The cache of a call: one that can hold a guardrail's state, or an error.

A call may carry earlier tokens in any argument. transformers passes a `Cache`, under a name that changed in 5.24 (see
`backbone.call_arguments`). Legacy tuples, states of recurrent models, caches of remote code and of other engines are
objects of any type under any name. So arguments are not searched for known foreign caches: everything that is not known
to be harmless is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase
from transformers.cache_utils import EncoderDecoderCache

from sae_unlearn.backbone.call_arguments import CACHE_NAMES
from sae_unlearn.errors import GuardrailUnsupported


_WORDS = {"cache", "caches", "past", "mem", "mems", "memory", "memories", "kv", "state"}
"""Parts of argument names that indicate tokens of earlier passes.

Read in transformers 5.16 to 5.24: `cache`, `past_key_values`, `past_key_value`, `cache_params`, `layer_past`,
`past_buckets_states`, `mems`, `state`.
"""

_NO_CACHE = {"cache_position"}

_OF_PARTS = {"attention_mask", "position_embeddings", "deepstack_visual_embeds", "full_text_row_masked_out_mask"}
"""Arguments of text decoders with several tensors, or an object, of this pass only.

Read in transformers 5.16 to 5.24.
"""

_PLAIN = (bool, int, float, type(None))


def cache_of_call(given: Mapping[str, Any]) -> Cache | None:
    """Return the cache that a backbone was called with, or None without one.

    Args:
        given (Mapping[str, Any]): All arguments of the call by name.

    Raises:
        GuardrailUnsupported: If an argument may carry earlier tokens and is not a cache that can hold the guardrail's
            state.
    """
    found: Cache | None = None
    of = ""
    for name, value in given.items():
        if isinstance(value, Cache):
            _check_cache(name, value)
            if found is not None and found is not value:
                raise GuardrailUnsupported(
                    f"{name}: expected one cache, got another one than {of}. Pass one `Cache`, which holds the "
                    "guardrail's state."
                )
            found, of = value, name
        elif _may_carry(name, value):
            raise GuardrailUnsupported(
                f"{name}: expected a transformers `Cache`, got {_kind(value)}, which cannot hold a guardrail's "
                "state. Pass a `DynamicCache`, or use_cache=False."
            )
    return found


def cache_of_layer(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cache | None:
    """Return the cache that a decoder layer was called with, or None without one.

    Args:
        args (tuple[Any, ...]): The positional arguments of the call.
        kwargs (Mapping[str, Any]): Its keyword arguments.

    Raises:
        GuardrailUnsupported: If the cache cannot hold the guardrail's state. A model may make one itself.
    """
    for name in (*CACHE_NAMES, "layer_past", "past_key_value"):
        value = kwargs.get(name)
        if value is not None and not isinstance(value, Cache):
            raise GuardrailUnsupported(
                f"{name} of a decoder layer: expected a transformers `Cache`, got {_kind(value)}. "
                "Call the model with use_cache=False."
            )
    for name, value in _numbered(args, kwargs):
        if isinstance(value, Cache):
            _check_cache(name, value)
            return value
    return None


def _numbered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return [*((f"argument {i} of a decoder layer", value) for i, value in enumerate(args)), *kwargs.items()]


def _check_cache(name: str, cache: Cache) -> None:
    if isinstance(cache, EncoderDecoderCache):
        raise GuardrailUnsupported(
            f"{name}: expected the cache of a decoder-only model, got an encoder's cache ({type(cache).__name__}). "
            "Pass a `DynamicCache`."
        )


def _may_carry(name: str, value: Any) -> bool:
    """True if an argument that is not a `Cache` may hold data of earlier tokens."""
    if isinstance(value, _PLAIN):
        return False
    if name not in _NO_CACHE and not _WORDS.isdisjoint(name.split("_")):
        return True
    if isinstance(value, (str, Tensor, PreTrainedTokenizerBase)):  # `transformers serve` passes a tokenizer on
        return False
    return name not in _OF_PARTS and not _is_plain(value)


def _is_plain(value: Any) -> bool:
    """True if a value consists of numbers and strings."""
    if isinstance(value, Mapping):
        return _is_plain(list(value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, (*_PLAIN, str))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
