"""Opening a file that is a file: no pipe, which would wait for ever, and no device, which has no end."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sae_unlearn.errors import UnlearnError


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """`path`, open for reading. It is looked at through the handle that is read, so that it cannot become something
    else in between.

    Raises:
        UnlearnError: it is a pipe, a device, a socket or a folder.
        OSError: it cannot be opened.
    """
    waits_for_nobody = getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDONLY | waits_for_nobody | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnlearnError(f"{path} is no regular file; copy the file there.")
        yield file


def check_regular(path: Path) -> None:
    """Raise unless `path` is a file, or a link to one; for libraries that open it themselves.

    Raises:
        UnlearnError: it is a pipe, a device, a socket or a folder.
    """
    if path.exists() and not path.is_file():
        raise UnlearnError(f"{path} is no regular file; copy the file there.")
