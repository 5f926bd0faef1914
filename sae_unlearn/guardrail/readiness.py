"""Whether a guardrail can guard: its weights arrived, and its gate can fire.

Asked at every call. What decides is looked at when it is new, and then known again by what costs no wait: the config's
fields by their values (a list by being the same one, of the same length), the tensors by their place and version.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.guardrail.belonging import check_longest, check_special
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_checks import check_choices, check_config, check_numbers
from sae_unlearn.guardrail.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.refusal import check_message
from sae_unlearn.guardrail.values import check_heard, check_tensors


_LISTS = ("feature_evidence", "refusal_ids", "special_token_ids", "message_boundary_ids")
_deciding = attrgetter(
    *("threshold", "statistic", "evidence", "hottest", "outlier_norm", "gate_scope", "sticky", "window"),
    *("window_weight", "drift", "min_tokens", "clamp_mode", "action", "counting", *_LISTS),
)
_lists = attrgetter(*_LISTS)


def check_ready(
    name: str,
    config: SAEGuardrailConfig,
    encoder: Any,
    decoder: Any,
    checked: dict[str, list[Any]],
    known: tuple[int, int | None],
) -> None:
    """Raise unless the config can be a guardrail's on this model, and the weights arrived and can be one's. Weights
    are looked at once, which costs one device synchronisation at the first call and none after it.

    While code is compiled the numbers of the config are looked at, and no weights; nor are those that are offloaded or
    sharded, which come in just before the encoder runs.

    Args:
        name: of the guardrail.
        encoder, decoder: a `GuardrailEncoder` and a `GuardrailDecoder`. Weights that cannot tell whether they were
            changed, since they were made in inference mode, are replaced by copies that can.
        checked: by name, what was looked at last: fields and tensors; written here.
        known: of the model: the size of its vocabulary, and the length of the longest text, None without a bound.

    Raises:
        GuardrailNotReady: naming what is missing.
    """
    if torch.compiler.is_compiling():
        _check_gate(name, config, known)
        return
    fields, tensors = checked.get(name, (None, None))
    if fields != _fields(config):
        _check_config(name, config, known)
        fields = _fields(config)
        checked[name] = [fields, None]
        tensors = None  # an outlier_norm goes with the weights
    found = _places(encoder, decoder)
    if found is None or found == tensors:
        return
    _check_weights(name, config, encoder, decoder)
    checked[name] = [fields, found]


def _fields(config: SAEGuardrailConfig) -> tuple[Any, ...]:
    """What a call is decided by. Tuples compare what is the same object without looking into it."""
    return (*_deciding(config), *[None if ids is None else len(ids) for ids in _lists(config)])


def _places(encoder: Any, decoder: Any) -> list[Any] | None:
    """By what the tensors are known again; None if they are not there to be looked at."""
    places: list[Any] = []
    for module in (encoder, decoder):
        for key, tensor in module._parameters.items():
            if tensor.is_meta or (type(tensor) is not nn.Parameter and hasattr(tensor, "full_tensor")):
                return None
            if tensor.is_inference():
                tensor = module._parameters[key] = _versioned(tensor)
            places += (id(tensor), tensor.data_ptr(), tensor._version)
    return places


def _versioned(tensor: Tensor) -> nn.Parameter:
    with torch.inference_mode(False):
        return nn.Parameter(tensor.clone(), requires_grad=False)


def _check_gate(name: str, config: SAEGuardrailConfig, known: tuple[int, int | None]) -> None:
    """What of a config can be looked at while code is compiled: nothing is changed, and lists are passed over."""
    if config.threshold is None:
        raise GuardrailNotReady(f"Guardrail {name!r} has no threshold, so its gate cannot decide. Set one.")
    if config.evidence == "log_ratio" and config.feature_evidence is None:
        raise GuardrailNotReady(f"Guardrail {name!r} has no feature_evidence, which evidence='log_ratio' needs.")
    if config.never_fires:
        raise GuardrailNotReady(
            f"The threshold of guardrail {name!r} was set to {config.threshold}, which no statistic "
            f"{config.statistic!r} exceeds, so its gate would never fire. Set another."
        )
    try:
        check_choices(config)
        check_numbers(config, always=True)  # to guard every text is to guard
        check_longest(config, known[1])
    except GuardrailError as error:
        raise GuardrailNotReady(f"Guardrail {name!r} was changed: {error}") from error


def _check_config(name: str, config: SAEGuardrailConfig, known: tuple[int, int | None]) -> None:
    _check_gate(name, config, known)
    try:
        check_config(config, always=True)
        check_special(config, known[0])
    except GuardrailError as error:
        raise GuardrailNotReady(f"Guardrail {name!r} was changed: {error}") from error
    if config.action == "refuse":
        check_message(config, known[0])


def _check_weights(name: str, config: SAEGuardrailConfig, encoder: Any, decoder: Any) -> None:
    named = {
        f"{part}.{key}": tensor.detach().cpu()
        for part, module in (("encoder", encoder), ("decoder", decoder))
        for key, tensor in module.named_parameters()
    }
    _check_arrived(name, named)
    try:
        check_tensors(named, f"guardrail {name!r}")
        check_heard(config, named, f"guardrail {name!r}")
    except GuardrailError as error:
        raise GuardrailNotReady(str(error)) from error


def _check_arrived(name: str, named: Mapping[str, Tensor]) -> None:
    empty = [key for key, tensor in named.items() if bool(tensor.isnan().all())]
    if empty:
        raise GuardrailNotReady(
            f"Guardrail {name!r} has no weights ({', '.join(empty)}), so nothing would be guarded. Load them "
            "(`attach_guardrail(model, folder)`), or give an SAE: `attach_guardrail(model, config, sae=sae)`."
        )
    low = [f"{key} ({tensor.dtype})" for key, tensor in named.items() if tensor.dtype.itemsize < 4]
    if low:
        raise GuardrailNotReady(
            f"Guardrail {name!r} has weights below float32 ({', '.join(low)}), which moves its threshold. "
            "Load them by `attach_guardrail`, or by `load_state_dict` without `assign=True`."
        )
