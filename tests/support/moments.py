"""What a kill would leave of a folder, at every moment at which something in it changes."""

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Moments:
    """Copies of a folder from before every change that this thread makes to its file system; where a file is about to
    be written over in its place, another with that file emptied, as it stands once it is open."""

    CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.utime", "shutil.")

    def __init__(self) -> None:
        self._folder = self._into = Path()
        self._thread: int | None = None
        self._interrupt_at: int | None = None
        self.copies: list[Path] = []
        sys.addaudithook(self._hook)  # cannot be taken off; quiet unless a folder is watched

    @contextmanager
    def watch(self, folder: Path, into: Path, interrupt_at: int | None = None) -> Iterator[list[Path]]:
        """Copy `folder` into the new folder `into` within the block.

        Args:
            interrupt_at: raise a KeyboardInterrupt instead of the change of this number, counted from 0.

        Yields:
            The copies' folders, which grow.
        """
        into.mkdir()
        self._folder, self._into, self._interrupt_at, self.copies = folder, into, interrupt_at, []
        self._thread = threading.get_ident()
        try:
            yield self.copies
        finally:
            self._thread = None

    def _hook(self, event: str, args: tuple) -> None:
        if self._thread != threading.get_ident():
            return
        writes = event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if not writes and not event.startswith(self.CHANGES):
            return
        thread, self._thread = self._thread, None  # copying is no event
        if len(self.copies) == self._interrupt_at:
            raise KeyboardInterrupt
        self._copy()
        if writes and args[2] & os.O_TRUNC and self._is_there(args[0]):
            emptied = self._copy() / Path(os.fsdecode(args[0])).relative_to(self._folder)
            emptied.write_bytes(b"")
        self._thread = thread

    def _copy(self) -> Path:
        copied = self._into / str(len(self.copies))
        if self._folder.exists():
            shutil.copytree(self._folder, copied)
        else:
            copied.mkdir()
        self.copies.append(copied)
        return copied

    def _is_there(self, path: object) -> bool:
        """Whether it is a file in the folder."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        place = Path(os.fsdecode(path))
        return place.is_relative_to(self._folder) and place.is_file()


MOMENTS = Moments()
