"""What of a claim has been measured: a file for each part, so that a run that was cut goes on where it was."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.forget.compare import write


class Parts:
    """The parts of one claim on one topic.

    Args:
        folder: of their files; None keeps none.

    Attributes:
        seconds, cpu_seconds: what measuring those parts took that were there already.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.seconds = self.cpu_seconds = 0.0

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The part of this name, measured if it is not there."""
        if self.folder is None:
            return measure()
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            self.seconds += kept["seconds"]
            self.cpu_seconds += kept["cpu_seconds"]
            return kept["found"]
        start, cpu = time.monotonic(), time.process_time()
        found = measure()
        spent = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
        write(path, {"part": name, **spent, "found": found})
        return found

    def remove(self) -> None:
        """The claim is measured in whole."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)
