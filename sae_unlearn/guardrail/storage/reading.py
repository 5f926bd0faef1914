"""Reading a guardrail's folder, which may come from anybody.

    adapter_config.json          the fields of `SAEGuardrailConfig`, plain JSON
    adapter_model.safetensors    five float32 tensors: encoder weight [N, d_in], bias [N], threshold [N];
                                 decoder weight [N, d_in], clamp [N]

Nothing else in the folder is read. Sizes are checked before the weights are read as such, names, shapes and dtypes in
their header before any tensor is made, and values before any is used.

Strings of a guardrail's config that are shown on its card, where markup would be carried out.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, deserialize
from safetensors.torch import load
from torch import Tensor

from sae_unlearn.checks import real
from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.files.hub import commit_of, fetch_file, is_local
from sae_unlearn.files.untrusted import open_regular, read_foreign_json
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.layout import (
    CONFIG_LIMIT,
    CONFIG_NAME,
    CONFIG_SEAL,
    WEIGHTS_NAME,
    WEIGHTS_SEAL,
    config_digest,
)
from sae_unlearn.guardrail.peft_type import CHILD, PEFT_TYPE
from sae_unlearn.guardrail.storage.bundle_index import refuse_bundle
from sae_unlearn.guardrail.storage.saving import staged_weights
from sae_unlearn.guardrail.weights import PARTS, check_heard, check_tensors


_HEADER_LIMIT = 2**20


class Artefact(NamedTuple):
    """A guardrail as it lies on disk, checked.

    Attributes:
        config: its configuration.
        tensors: by the names of `PARTS`.
        revision: commit of the Hub repository it came from, None for a local folder.
        damage: what differs from the seal that was written with it, None if nothing does or there is no seal.
    """

    config: SAEGuardrailConfig
    tensors: dict[str, Tensor]
    revision: str | None
    damage: str | None = None


@as_guardrail_error()
def read_config(source: str | os.PathLike[str], **hub: Any) -> tuple[SAEGuardrailConfig, Path]:
    """The config of a guardrail in a local folder or a Hub repository, and the file it was read from.

    Args:
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, as in `huggingface_hub`.

    Raises:
        GuardrailError: there is no guardrail, or its config is malformed.
    """
    path = _fetch_config(source, hub)
    return _parse(_stored(path, source), source), path


def _fetch_config(source: str | os.PathLike[str], hub: dict[str, Any]) -> Path:
    try:
        return fetch_file(source, CONFIG_NAME, hub)
    except GuardrailError as error:
        refuse_bundle(source, error, hub)
        raise


def _stored(path: Path, source: Any) -> dict[str, Any]:
    """The config as it stands in its file."""
    stored = read_foreign_json(path, CONFIG_LIMIT, f"{CONFIG_NAME} of {source}")
    if not isinstance(stored, dict):
        raise GuardrailError(f"{CONFIG_NAME} of {source} holds a {type(stored).__name__} and not a mapping.")
    return stored


def _parse(stored: dict[str, Any], source: Any) -> SAEGuardrailConfig:
    if stored.get("peft_type") != PEFT_TYPE.value:
        raise GuardrailError(
            f"{source} holds a {stored.get('peft_type')!r} adapter and not a guardrail ({PEFT_TYPE.value!r}); load it "
            "with `peft.PeftModel.from_pretrained`."
        )
    fields = {key: value for key, value in stored.items() if key not in ("peft_type", "runtime_config")}
    try:
        return SAEGuardrailConfig(**SAEGuardrailConfig.check_kwargs(**fields))
    except GuardrailError as error:
        raise GuardrailError(f"{CONFIG_NAME} of {source}: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise GuardrailError(f"{CONFIG_NAME} of {source} has a field of the wrong type: {error}") from error


@as_guardrail_error()
def read_artefact(source: str | os.PathLike[str], **hub: Any) -> Artefact:
    """A guardrail from a local folder or a Hub repository; see `read_config`.

    Raises:
        GuardrailError: it is missing or malformed, naming what and where.
    """
    config_path = _fetch_config(source, hub)
    stored = _stored(config_path, source)
    config = _parse(stored, source)
    if config.num_features < 1 or config.hidden_size is None or config.threshold is None:
        raise GuardrailError(
            f"{CONFIG_NAME} of {source} names no features, no hidden size or no threshold "
            f"({config.num_features}, {config.hidden_size}, {config.threshold}); it was not written by a fit."
        )
    if config.evidence == "log_ratio" and config.feature_evidence is None:
        raise GuardrailError(f"{CONFIG_NAME} of {source} has no feature_evidence, which evidence='log_ratio' needs.")
    if config.outlier_norm is not None and real((config.calibration or {}).get("residual_norm_median")) is None:
        raise GuardrailError(
            f"{CONFIG_NAME} of {source} has outlier_norm={config.outlier_norm}, and no residual_norm_median in its "
            "calibration to compare it with; fit it again."
        )
    revision = None
    if not is_local(source):
        revision = commit_of(config_path)
        hub = hub | {"revision": revision or hub.get("revision")}  # both files of one commit
    path = fetch_file(source, WEIGHTS_NAME, hub)
    data, digest = _read_weights(path, config)
    sealed = stored.get(WEIGHTS_SEAL)
    if is_local(source) and isinstance(sealed, str) and digest != sealed:
        unfinished = staged_weights(config_path, sealed, _tensor_bytes(config) + _HEADER_LIMIT)
        if unfinished is not None:
            data, digest = _read_weights(unfinished, config)
    config.origin = {  # type: ignore[misc]  # a ClassVar only so that it is no field
        "id": str(source),
        "subfolder": hub.get("subfolder"),
        "revision": revision,
    }
    tensors = _parse_tensors(data, source, config)
    return Artefact(config, tensors, revision, _damage(stored, digest))


def _damage(stored: dict[str, Any], weights_digest: str) -> str | None:
    found = {(CONFIG_NAME, CONFIG_SEAL): config_digest(stored), (WEIGHTS_NAME, WEIGHTS_SEAL): weights_digest}
    for (name, key), digest in found.items():
        if key in stored and stored[key] != digest:
            return f"{name} is not as it was saved: its SHA-256 is {digest}, and {key} says {stored[key]!r}"
    return None


def _read_weights(path: Path, config: SAEGuardrailConfig) -> tuple[bytes, str]:
    """A file's bytes and their digest, of one reading: both are of the same file even while another process saves. Of
    one that is too large no more is read than shows it."""
    with open_regular(path) as file:
        data = file.read(_tensor_bytes(config) + _HEADER_LIMIT + 1)
    return data, hashlib.sha256(data).hexdigest()


def _parse_tensors(data: bytes, source: Any, config: SAEGuardrailConfig) -> dict[str, Tensor]:
    n, d_in = config.num_features, config.width
    shapes = {"weight": [n, d_in], "bias": [n], "threshold": [n], "clamp": [n]}
    expected, size = _tensor_bytes(config), len(data)
    if not expected < size <= expected + _HEADER_LIMIT:
        raise GuardrailError(
            f"{WEIGHTS_NAME} of {source} has {size} bytes{' or more' if size > expected else ''}; {n} features of "
            f"width {d_in} take {expected} and a header."
        )
    try:
        stored = dict(deserialize(data))  # type: ignore[no-untyped-call]
        keys = {name: _key(list(stored), config.layer, suffix, source) for name, suffix in PARTS.items()}
        if len(stored) != len(PARTS):
            extra = sorted(set(stored) - set(keys.values()))
            raise GuardrailError(f"{WEIGHTS_NAME} of {source} holds unknown tensors: {extra[:5]}.")
        for name, key in keys.items():
            found, shape = stored[key], shapes[name.split(".")[1]]
            if found["shape"] != shape or found["dtype"] != "F32":
                raise GuardrailError(f"{key} of {source} is {found['dtype']} {found['shape']}; expected F32 {shape}.")
        loaded = load(data)
    except SafetensorError as error:
        raise GuardrailError(f"{WEIGHTS_NAME} of {source} is not a sound safetensors file: {error}") from error
    tensors = {name: loaded[key] for name, key in keys.items()}
    check_tensors(tensors, str(source))
    check_heard(config, tensors, str(source))
    return tensors


def _tensor_bytes(config: SAEGuardrailConfig) -> int:
    return 4 * (2 * config.num_features * config.width + 3 * config.num_features)


def _key(keys: list[str], layer: int, suffix: str, source: Any) -> str:
    found = [key for key in keys if key.endswith(f".{layer}.{CHILD}.{suffix}")]
    if len(found) != 1:
        raise GuardrailError(
            f"{WEIGHTS_NAME} of {source} has {len(found)} tensors named *.{layer}.{CHILD}.{suffix}, expected 1."
        )
    return found[0]


_MARKUP = frozenset("<>`")


def check_plain_text(config: SAEGuardrailConfig) -> None:
    """Raise if a string that goes on the card holds markup or control characters; no fit writes such.

    Raises:
        GuardrailError: naming the field.
    """
    shown = {"base_model_name_or_path": config.base_model_name_or_path}
    shown |= {f"sae_source[{key!r}]": value for key, value in (config.sae_source or {}).items()}
    warnings = (config.calibration or {}).get("warnings")
    shown |= {
        f"calibration warning {i}": value for i, value in enumerate(warnings if isinstance(warnings, list) else [])
    }
    for name, value in shown.items():
        if isinstance(value, str) and (not value.isprintable() or _MARKUP.intersection(value)):
            raise GuardrailError(
                f"{name}={value[:80]!r} holds markup or control characters; this guardrail was not written by a fit."
            )
