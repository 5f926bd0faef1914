"""File names of a saved guardrail, and its seal: digests of its two files in its config.

    weights_sha256    SHA-256 of the bytes of `adapter_model.safetensors`
    config_sha256     SHA-256 of the config's other fields, as JSON with sorted keys and no white space

They detect a flipped bit or a file of another save. They are not a signature: anyone who can change the files can
change the seal as well. Folders that PEFT's own classes saved have no seal.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


PICTURE = "calibration.png"  # next to the card


CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_LIMIT = 4 * 2**20  # bytes

WEIGHTS_SEAL, CONFIG_SEAL = SEALS = ("weights_sha256", "config_sha256")


def config_digest(stored: Mapping[str, Any]) -> str:
    """Return the digest of a stored config's fields without the seal; "" for one that nests too deep."""
    fields = {key: value for key, value in stored.items() if key not in SEALS}
    try:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()  # `files.digest` is out of reach: a config knows no disk
