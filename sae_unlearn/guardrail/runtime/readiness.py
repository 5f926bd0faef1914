"""Readiness of a guardrail: its weights arrived, and its gate can fire.

Runs on every call. The full check runs once, and again after a change. Between changes a call compares version numbers,
which needs no device sync: the config's, and identity, address and version of each tensor.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.base_model.match import check_longest, check_special
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import check_choices, check_config, check_numbers
from sae_unlearn.guardrail.runtime.refusal import check_message
from sae_unlearn.guardrail.weights import check_heard, check_tensors


_address, _version = Tensor.data_ptr, attrgetter("_version")


class Looked(NamedTuple):
    """State of the last successful check.

    Attributes:
        version (int): Version of the config.
        tensors: Identities, addresses and versions of the tensors. None if they could not be read.
        home: The device on which all tensors are, each contiguous and in float32. None without one.
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
    """Raise unless the config fits this model, and the weights arrived and are valid.

    Weights are checked once, with one device sync at the first call and none after it. While code is compiled only the
    numbers of the config are checked. Weights that are offloaded or sharded, which arrive just before the encoder
    runs, are not checked.

    Args:
        name (str): Name of the guardrail.
        config (SAEGuardrailConfig): Its config.
        encoder, decoder (Any): A `GuardrailEncoder` and a `GuardrailDecoder`. Weights without a version, since they
            were made in inference mode, are replaced by copies that have one.
        looked (dict): State of the last check by name, updated here.
        known (tuple): Of the model: the size of its vocabulary, and the length of the longest text, None without a
            bound.

    Returns:
        The device on which all weights are, contiguous, in float32 and frozen. None without one, or if unchecked.

    Raises:
        GuardrailNotReady: If something is missing. The message names it.
    """
    if torch.compiler.is_compiling():
        _check_gate(name, config, known)
        return None
    last = looked.get(name)
    if last is None or last.version != config.version:
        version = config.version  # before the check: a change by another thread meanwhile is checked at the next call
        _check_config(name, config, known)
        last = looked[name] = Looked(version)  # the outlier norm is checked with the weights
    if last.tensors is not None and _are_still(last.tensors, encoder, decoder):
        return last.home
    tensors = _places(encoder, decoder)
    if tensors is None:
        return None
    _check_weights(name, config, encoder, decoder)
    looked[name] = last._replace(tensors=tensors, home=_home(encoder, decoder))
    return looked[name].home


def _are_still(looked: list[int], encoder: Any, decoder: Any) -> bool:
    """True if the parameters are those that were checked, unchanged."""
    try:
        return looked == _marks([*encoder._parameters.values(), *decoder._parameters.values()])
    except RuntimeError:  # a tensor without memory or version
        return False


def _marks(tensors: list[Tensor]) -> list[int]:
    """Identity, address and version of each tensor, which change with it.

    The version counts writes into a tensor, and the address changes when `data` is assigned, which the version does not
    count.
    """
    return [*map(id, tensors), *map(_address, tensors), *map(_version, tensors)]


def _places(encoder: Any, decoder: Any) -> list[int] | None:
    """The marks of the tensors, or None if they cannot be read."""
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
    """The device of tensors that a kernel can read as they are."""
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
    """Check the parts of a config that can be read while code is compiled.

    Nothing is changed, and lists are skipped.
    """
    if config.threshold is None:
        raise GuardrailNotReady(
            f"threshold=None of guardrail {name!r}: expected a number, so that its gate can decide. Set one."
        )
    if config.statistic == "windowed" and config.feature_evidence is None:
        raise GuardrailNotReady(
            f"feature_evidence=None of guardrail {name!r}: expected evidence for statistic='windowed'. Fit it."
        )
    if config.never_fires:
        raise GuardrailNotReady(
            f"threshold={config.threshold} of guardrail {name!r}: expected a value that "
            f"statistic={config.statistic!r} can "
            "exceed, so that its gate can fire. Set another."
        )
    try:
        check_choices(config)
        check_numbers(config, always=True)  # a gate that fires on every text is valid
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
