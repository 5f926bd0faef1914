"""Checkpoints of a fit, from which an interrupted fit resumes.

Each process has a file with the settings of the fit and, for each pass over rows, the number of batches that were run,
the sums, and the SHA-256 of the rows. A resumed fit reads the corpora again, runs only the missing batches, and ends
with the same bits. No text is saved.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sae_unlearn.backbone.distributed import process_count, process_index
from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.atomic import staged


FORMAT = 3
EVERY = 50  # batches


class Stateful(Protocol):
    """Protocol of sums that can be saved and restored."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


class Standing(NamedTuple):
    """Progress of a pass.

    Attributes:
        done (int, *optional*, defaults to 0): Number of the next batch.
        finished (bool, *optional*, defaults to False): True if the pass is complete.
        digest (str, *optional*): SHA-256 of the rows read so far; None if they do not come from a corpus.
    """

    done: int = 0
    finished: bool = False
    digest: str | None = None

    def check(self, digest: str | None) -> None:
        """Raise unless the rows read are those of the saved pass.

        Raises:
            GuardrailError: If they are not.
        """
        if self.done and digest != self.digest:
            raise GuardrailError(
                "checkpoint_dir: its fit read another corpus. Pass the same texts in the same order, or another folder."
            )


class FitCheckpoint:
    """The passes of one fit, saved in a folder.

    Args:
        folder (str or Path): The folder, created if it does not exist.
        settings (Mapping[str, Any]): Settings on which the fit depends, as JSON values.

    Raises:
        GuardrailError: If the folder holds the passes of another fit, or a damaged file.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self._path = Path(folder) / f"fit-{process_index()}-of-{process_count()}.pt"
        self._settings = {key: json.dumps(value, sort_keys=True, default=str) for key, value in settings.items()}
        self._passes: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._passes = self._read()

    def restore(self, title: str, parts: Mapping[str, Tensor | Stateful]) -> Standing:
        """Restore the parts of a pass from its last checkpoint, if any, and return its progress."""
        saved = self._passes.get(title)
        if saved is None:
            return Standing()
        for name, part in parts.items():
            if isinstance(part, Tensor):
                part.copy_(saved["parts"][name])
            else:
                part.restore(saved["parts"][name])
        return Standing(*saved["standing"])

    def save(self, title: str, standing: Standing, parts: Mapping[str, Tensor | Stateful]) -> None:
        """Save the progress of a pass. The file is replaced atomically."""
        kept = {
            name: part.clone() if isinstance(part, Tensor) else {key: t.clone() for key, t in part.state().items()}
            for name, part in parts.items()
        }
        self._passes[title] = {"standing": tuple(standing), "parts": kept}
        with staged(self._path.parent) as stage:
            torch.save({"format": FORMAT, "settings": self._settings, "passes": self._passes}, stage / self._path.name)

    def remove(self) -> None:
        """Delete the checkpoint of a complete fit."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            settings, passes = found["settings"], found["passes"]
            sound = found["format"] == FORMAT and isinstance(settings, dict) and isinstance(passes, dict)
        except Exception as error:  # torch raises several classes for a file of another kind
            raise GuardrailError(f"{self._path} is not a checkpoint of a fit. Remove it.") from error
        if not sound:
            raise GuardrailError(f"{self._path} was saved by another version. Remove it.")
        names = sorted(name for name in settings | self._settings if settings.get(name) != self._settings.get(name))
        if names:
            name = names[0]
            raise GuardrailError(
                f"{self._path} is of another fit: {', '.join(names)} differ ({name} was "
                f"{str(settings.get(name))[:200]}, got {str(self._settings.get(name))[:200]}). Pass another folder."
            )
        return passes
