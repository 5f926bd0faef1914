"""Parsing and checking of a guardrail's files, which are untrusted; `folder` opens them.

    adapter_config.json          the fields of `SAEGuardrailConfig`, plain JSON
    adapter_model.safetensors    five float32 tensors: encoder weight [N + M, d_in], bias [N + M], threshold [N + M];
                                 decoder weight [N, d_in], clamp [N]; M features of `gate_feature_ids`

Nothing else in the folder is read. The size is checked before the weights are parsed, names, shapes and dtypes in their
header before a tensor is created, and values before one is used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, deserialize
from safetensors.torch import load
from torch import Tensor

from sae_unlearn.checks import real
from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.atomic import unfinished_saves
from sae_unlearn.files.digest import sha256
from sae_unlearn.files.untrusted import open_regular
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.layout import (
    CONFIG_NAME,
    CONFIG_SEAL,
    WEIGHTS_NAME,
    WEIGHTS_SEAL,
    config_digest,
)
from sae_unlearn.guardrail.peft_type import CHILD, PEFT_TYPE
from sae_unlearn.guardrail.weights import PARTS, check_heard, check_tensors


_HEADER_LIMIT = 2**20


class Artefact(NamedTuple):
    """A guardrail read from disk, checked.

    Attributes:
        config (SAEGuardrailConfig): Its config.
        tensors (dict[str, Tensor]): Its tensors by the names of `PARTS`.
        revision (str or None): Commit of the Hub repository; None for a local folder.
        damage (str, *optional*): The difference from its seal, in a sentence; None without a difference or a seal.
    """

    config: SAEGuardrailConfig
    tensors: dict[str, Tensor]
    revision: str | None
    damage: str | None = None


def parse_config(stored: Mapping[str, Any], source: str) -> SAEGuardrailConfig:
    """Return the config of a guardrail.

    Args:
        stored (Mapping[str, Any]): Content of its file.
        source (str): Name of the folder in errors.

    Raises:
        GuardrailError: If it is malformed, or of another adapter.
    """
    if stored.get("peft_type") != PEFT_TYPE.value:
        raise GuardrailError(
            f"{source}: expected a guardrail (peft_type={PEFT_TYPE.value!r}), got a {stored.get('peft_type')!r} "
            "adapter. Load it with `peft.PeftModel.from_pretrained`."
        )
    fields = {key: value for key, value in stored.items() if key not in ("peft_type", "runtime_config")}
    try:
        return SAEGuardrailConfig(**SAEGuardrailConfig.check_kwargs(**fields))
    except GuardrailError as error:
        raise GuardrailError(f"{CONFIG_NAME} of {source}: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise GuardrailError(f"{CONFIG_NAME} of {source} has a field of the wrong type: {error}") from error


def check_complete(config: SAEGuardrailConfig, where: str) -> None:
    """Raise if a stored config lacks a field that a guardrail needs.

    Raises:
        GuardrailError: If features, hidden size, threshold or a needed measurement are missing.
    """
    width = config.base_model.hidden_size
    if config.num_features < 1 or width is None or config.threshold is None:
        raise GuardrailError(
            f"{CONFIG_NAME} of {where}: expected features, hidden_size and threshold, got {config.num_features}, "
            f"{width} and {config.threshold}. Use the config of a fit."
        )
    if config.statistic == "windowed" and config.feature_evidence is None:
        raise GuardrailError(f"{CONFIG_NAME} of {where} has no feature_evidence, which statistic='windowed' needs.")
    if config.tokens.outlier_norm is not None and real((config.calibration or {}).get("residual_norm_median")) is None:
        raise GuardrailError(
            f"{CONFIG_NAME} of {where}: outlier_norm={config.tokens.outlier_norm} needs residual_norm_median in its "
            "calibration. Fit it again."
        )


def damage_of(stored: Mapping[str, Any], weights_digest: str) -> str | None:
    """Return the difference of a stored guardrail from its seal; None without a difference or a seal."""
    found = {(CONFIG_NAME, CONFIG_SEAL): config_digest(stored), (WEIGHTS_NAME, WEIGHTS_SEAL): weights_digest}
    for (name, key), digest in found.items():
        if key in stored and stored[key] != digest:
            return f"{name} changed after it was saved: its SHA-256 is {digest}, but {key} is {stored[key]!r}"
    return None


def sealed_weights(path: Path, limit: int, sealed: str) -> bytes | None:
    """Return the weights of a config's seal from an unfinished save; None if it has none.

    Args:
        path (Path): The file that the weights would have become.
        limit (int): Largest size in bytes. Larger files are not read.
        sealed (str): Their SHA-256.
    """
    for unfinished in unfinished_saves(path):
        with open_regular(unfinished) as file:
            data = file.read(limit + 1)
        if len(data) <= limit and sha256(data) == sealed:
            return data
    return None


def parse_tensors(data: bytes, source: str, config: SAEGuardrailConfig) -> dict[str, Tensor]:
    """Return the tensors of a guardrail by the names of `PARTS`, from the bytes of its weights.

    Raises:
        GuardrailError: If they do not fit the config.
    """
    n, m, d_in = config.num_features, config.num_encoded, config.width
    shapes = {"encoder.weight": [m, d_in], "encoder.bias": [m], "encoder.threshold": [m]}
    shapes |= {"decoder.weight": [n, d_in], "decoder.clamp": [n]}
    expected, size = _tensor_bytes(config), len(data)
    if not expected < size <= largest_weights(config):
        raise GuardrailError(
            f"{WEIGHTS_NAME} of {source} has {size} bytes{' or more' if size > expected else ''}: expected {expected} "
            f"and a header for {m} features of width {d_in}."
        )
    try:
        stored = dict(deserialize(data))  # type: ignore[no-untyped-call]
        keys = {name: _key(list(stored), config.layer, suffix, source) for name, suffix in PARTS.items()}
        if len(stored) != len(PARTS):
            extra = sorted(set(stored) - set(keys.values()))
            raise GuardrailError(f"{WEIGHTS_NAME} of {source} holds unknown tensors: {extra[:5]}.")
        for name, key in keys.items():
            found, shape = stored[key], shapes[name]
            if found["shape"] != shape or found["dtype"] != "F32":
                raise GuardrailError(f"{key} of {source} is {found['dtype']} {found['shape']}: expected F32 {shape}.")
        loaded = load(data)
    except SafetensorError as error:
        raise GuardrailError(f"{WEIGHTS_NAME} of {source} is not a valid safetensors file: {error}") from error
    tensors = {name: loaded[key] for name, key in keys.items()}
    check_tensors(tensors, source)
    check_heard(config, tensors, source)
    return tensors


def _tensor_bytes(config: SAEGuardrailConfig) -> int:
    return 4 * (config.num_features * (config.width + 1) + config.num_encoded * (config.width + 2))


def largest_weights(config: SAEGuardrailConfig) -> int:
    """Return the largest size in bytes of a config's file of weights."""
    return _tensor_bytes(config) + _HEADER_LIMIT


def _key(keys: list[str], layer: int, suffix: str, source: str) -> str:
    found = [key for key in keys if key.endswith(f".{layer}.{CHILD}.{suffix}")]
    if len(found) != 1:
        raise GuardrailError(
            f"{WEIGHTS_NAME} of {source} has {len(found)} tensors named *.{layer}.{CHILD}.{suffix}: expected 1."
        )
    return found[0]


_MARKUP = frozenset("<>`")


def check_plain_text(config: SAEGuardrailConfig) -> None:
    """Raise if a string for the card holds markup or control characters, which a fit never writes.

    Raises:
        GuardrailError: If a field has such characters.
    """
    shown = {"base_model_name_or_path": config.base_model_name_or_path}
    shown |= {f"sae_source[{key!r}]": value for key, value in (config.sae_source or {}).items()}
    for kind in ("warnings", "words"):
        found = (config.calibration or {}).get(kind)
        shown |= {f"calibration {kind} {i}": value for i, value in enumerate(found if isinstance(found, list) else [])}
    for name, value in shown.items():
        if isinstance(value, str) and (not value.isprintable() or _MARKUP.intersection(value)):
            raise GuardrailError(
                f"{name}={value[:80]!r}: expected plain text without markup or control characters, as a fit writes it."
            )
