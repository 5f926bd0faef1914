"""The seal of a saved guardrail: digests of its two files, in its config.

    weights_sha256    SHA-256 of the bytes of `adapter_model.safetensors`
    config_sha256     SHA-256 of the config's other fields, as JSON with sorted keys and no white space

A flipped bit or a file of another save is found out by them. They are no signature: whoever can change the files can
change the seal as well. Folders that PEFT's own classes saved have none.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    pass


PICTURE = "calibration.png"  # beside the card


CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_LIMIT = 4 * 2**20  # bytes

WEIGHTS_SEAL, CONFIG_SEAL = SEALS = ("weights_sha256", "config_sha256")


def config_digest(stored: Mapping[str, Any]) -> str:
    """The digest of the fields of a config as it is stored, but for the seal itself; "" for one that nests too deep."""
    fields = {key: value for key, value in stored.items() if key not in SEALS}
    try:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(config: Path, weights: Path) -> None:
    """Write the seal into a config that has just been saved."""
    stored = json.loads(config.read_text(encoding="utf-8"))
    stored[WEIGHTS_SEAL] = file_digest(weights)
    stored[CONFIG_SEAL] = config_digest(stored)
    config.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
