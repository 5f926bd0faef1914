"""Whether a guardrail can guard: its weights arrived, and its gate can fire.

Runs on every call. The full check runs once, and again after a change. Between changes a call compares version numbers,
which needs no device sync: the config's, and identity, address and version of each tensor.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.base_match import check_longest, check_special
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_validation import check_choices, check_config, check_numbers
from sae_unlearn.guardrail.runtime.refusal import check_message
from sae_unlearn.guardrail.weights import check_heard, check_tensors


_address, _version = Tensor.data_ptr, attrgetter("_version")


class Looked(NamedTuple):
    """What was looked at last, and found good.

    Attributes:
        version: of the config.
        tensors: identities, addresses and versions of the tensors; None if they were not there to be looked at.
        home: the device on which all tensors lie, each in one piece and in float32; None without one.
    """

    version: int
    tensors: list[int] | None = None
    home: torch.device | None = None


def check_ready(
    name: str,
    config: SAEGuardrailConfig,
    encoder: Any,
    decoder: Any,
    looked: dict[str, Looked],
    known: tuple[int, int | None],
) -> torch.device | None:
    """Raise unless the config can be a guardrail's on this model, and the weights arrived and can be one's. Weights
    are looked at once, which costs one device synchronisation at the first call and none after it.

    While code is compiled the numbers of the config are looked at, and no weights; nor are those that are offloaded or
    sharded, which come in just before the encoder runs.

    Args:
        name: of the guardrail.
        encoder, decoder: a `GuardrailEncoder` and a `GuardrailDecoder`. Weights that cannot tell whether they were
            changed, since they were made in inference mode, are replaced by copies that can.
        looked: by name, what was looked at last; written here.
        known: of the model: the size of its vocabulary, and the length of the longest text, None without a bound.

    Returns:
        The device on which all weights lie, each in one piece, in float32 and frozen; None where there is no such, or
        nobody looked.

    Raises:
        GuardrailNotReady: naming what is missing.
    """
    if torch.compiler.is_compiling():
        _check_gate(name, config, known)
        return None
    last = looked.get(name)
    if last is None or last.version != config.version:
        version = config.version  # before the check: what another thread changes meanwhile is checked at the next call
        _check_config(name, config, known)
        last = looked[name] = Looked(version)  # an outlier_norm goes with the weights
    if last.tensors is not None and _are_still(last.tensors, encoder, decoder):
        return last.home
    tensors = _places(encoder, decoder)
    if tensors is None:
        return None
    _check_weights(name, config, encoder, decoder)
    looked[name] = last._replace(tensors=tensors, home=_home(encoder, decoder))
    return looked[name].home


def _are_still(looked: list[int], encoder: Any, decoder: Any) -> bool:
    """Whether the parameters are those that were looked at, unchanged."""
    try:
        return looked == _marks([*encoder._parameters.values(), *decoder._parameters.values()])
    except RuntimeError:  # of a tensor that has no memory or no version
        return False


def _marks(tensors: list[Tensor]) -> list[int]:
    """What tells tensors from others, and from themselves before a change: the version counts what is written into
    one, and the address moves where `data` is assigned, which the version does not count."""
    return [*map(id, tensors), *map(_address, tensors), *map(_version, tensors)]


def _places(encoder: Any, decoder: Any) -> list[int] | None:
    """The marks of the tensors; None if they are not there to be looked at."""
    tensors: list[Tensor] = []
    for parameters in (encoder._parameters, decoder._parameters):
        for key, tensor in parameters.items():
            if type(tensor) is not nn.Parameter and hasattr(tensor, "full_tensor"):
                return None
            if tensor.data_ptr() == 0 and tensor.is_meta:
                return None
            if tensor.is_inference():
                tensor = parameters[key] = _versioned(tensor)
            tensors.append(tensor)
    return _marks(tensors)


def _home(encoder: Any, decoder: Any) -> torch.device | None:
    """The device of tensors that a kernel can read as they lie."""
    tensors = (*encoder.parameters(), *decoder.parameters())
    device: torch.device = tensors[0].device
    plain = all(
        tensor.device == device
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and not tensor.requires_grad
        for tensor in tensors
    )
    return device if plain else None


def _versioned(tensor: Tensor) -> nn.Parameter:
    with torch.inference_mode(False):
        return nn.Parameter(tensor.clone(), requires_grad=False)


def _check_gate(name: str, config: SAEGuardrailConfig, known: tuple[int, int | None]) -> None:
    """What of a config can be looked at while code is compiled: nothing is changed, and lists are passed over."""
    if config.threshold is None:
        raise GuardrailNotReady(f"Guardrail {name!r} has no threshold, so its gate cannot decide. Set one.")
    if config.statistic == "windowed" and config.feature_evidence is None:
        raise GuardrailNotReady(
            f"Guardrail {name!r} has no feature_evidence, which statistic='windowed' needs. Fit it."
        )
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
