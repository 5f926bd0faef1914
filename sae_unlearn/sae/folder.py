"""A folder with one SAE, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SAEFolder:
    """What a reader is given.

    Attributes:
        path: the folder on this machine in which the SAE's files lie.
        files: the files that the reader asked for, relative to `path`.
        label: where the SAE comes from as people write it, e.g. "google/gemma-scope-2b-pt-res/layer_3/width_16k";
            formats without a configuration file tell the layer and the place only there.
    """

    path: Path
    files: tuple[str, ...]
    label: str

    def has(self, name: str) -> bool:
        """Whether the optional file `name` is there."""
        return name in self.files

    def file(self, name: str) -> Path:
        """The path of one of `files` on this machine."""
        return self.path / name
