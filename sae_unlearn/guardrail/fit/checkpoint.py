"""Where a fit stands, written to a folder as it goes on, so that one that was killed goes on where it stopped.

A file for each process: what the fit hangs on, and of each pass over rows how many batches were run, the sums up to
there, and the SHA-256 of the rows read by then. A resumed fit reads the corpora again, runs only the batches that are
missing, and ends with the same numbers to the last bit. No text is kept.
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


FORMAT = 2
EVERY = 50  # batches


class Stateful(Protocol):
    """Sums that can be taken up again."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


class Standing(NamedTuple):
    """How far a pass has come.

    Attributes:
        done: number of the batch to go on with.
        finished: whether it came to its end.
        digest: of the rows read by then; None where they do not come from a corpus.
    """

    done: int = 0
    finished: bool = False
    digest: str | None = None

    def check(self, digest: str | None) -> None:
        """Raise unless the rows read are those of the pass that was saved.

        Raises:
            GuardrailError: they are not.
        """
        if self.done and digest != self.digest:
            raise GuardrailError(
                "The corpus is not the one that the fit in `checkpoint_dir` was reading when it was saved; give the "
                "same texts in the same order, or another folder."
            )


class FitCheckpoint:
    """The passes of one fit, kept in a folder.

    Args:
        folder: made if it is not there.
        settings: what the fit hangs on, as JSON values.

    Raises:
        GuardrailError: the folder holds the passes of another fit, or a file that is not sound.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self._path = Path(folder) / f"fit-{process_index()}-of-{process_count()}.pt"
        self._settings = {key: json.dumps(value, sort_keys=True, default=str) for key, value in settings.items()}
        self._passes: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._passes = self._read()

    def restore(self, title: str, parts: Mapping[str, Tensor | Stateful]) -> Standing:
        """Bring the parts of a pass to where they were when it was saved last, if it was."""
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
        """Write down where a pass stands; the file is replaced as a whole."""
        kept = {
            name: part.clone() if isinstance(part, Tensor) else {key: t.clone() for key, t in part.state().items()}
            for name, part in parts.items()
        }
        self._passes[title] = {"standing": tuple(standing), "parts": kept}
        with staged(self._path.parent) as stage:
            torch.save({"format": FORMAT, "settings": self._settings, "passes": self._passes}, stage / self._path.name)

    def remove(self) -> None:
        """The fit is done."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            settings, passes = found["settings"], found["passes"]
            sound = found["format"] == FORMAT and isinstance(settings, dict) and isinstance(passes, dict)
        except Exception as error:  # torch has no one class for a file that is none of its own
            raise GuardrailError(f"{self._path} is not a fit that was saved; remove it.") from error
        if not sound:
            raise GuardrailError(f"{self._path} was saved by another version; remove it.")
        names = sorted(name for name in settings | self._settings if settings.get(name) != self._settings.get(name))
        if names:
            name = names[0]
            raise GuardrailError(
                f"The fit in {self._path} is another one: {', '.join(names)} differ ({name} was "
                f"{str(settings.get(name))[:200]} and is {str(self._settings.get(name))[:200]}); give another folder."
            )
        return passes
