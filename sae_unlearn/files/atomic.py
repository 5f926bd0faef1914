"""Atomic saving of several files: a kill or a full disk never leaves half of one."""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from sae_unlearn.errors import UnlearnError


STAGE = ".saving-"
_ABANDONED = 3600.0  # seconds after which the folder of a save that never ended is deleted


@contextmanager
def staged(folder: Path, first: Sequence[str] = (), key: str | None = None) -> Iterator[Path]:
    """Yield a new folder `.saving-...` in `folder`; after the block its files replace those of `folder`.

    Each file is replaced as a whole. If the block fails, `folder` is unchanged. If the process ends while files are
    replaced, the remaining ones stay in the stage.

    Args:
        folder (Path): The folder to save to.
        first (Sequence[str], *optional*, defaults to ()): Names of the files to replace first, in this order.
        key (str, *optional*): Name of a file without which the others are not read. If its content changes, the old one
            is removed before any file is replaced, and the new one comes last. So it never stands next to files of
            another save.

    Raises:
        UnlearnError: If the disk is full, or `folder` cannot be written.
    """
    stage = folder / f"{STAGE}{secrets.token_hex(8)}"
    try:
        stage.mkdir(parents=True)
        yield stage
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise UnlearnError(
                f"{folder} could not be written ({error}); its files are unchanged. Free some space or save to another "
                "folder."
            ) from error
        raise
    _move(stage, folder, list(first), key)
    shutil.rmtree(stage, ignore_errors=True)
    for left in folder.glob(f"{STAGE}*"):
        with suppress(FileNotFoundError):  # another process has just ended its save
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically: at any moment `path` is the old file or the new one.

    Raises:
        UnlearnError: If the disk is full, or the folder cannot be written.
    """
    with staged(path.parent) as stage:
        (stage / path.name).write_text(text, encoding="utf-8")


def unfinished_saves(path: Path) -> Iterator[Path]:
    """Yield the files that would have become `path`, of saves that did not finish. Links are not followed.

    Args:
        path (Path): A file that `staged` writes, in the folder of its save or one level below it.
    """
    for root in (path.parent, path.parent.parent):
        for stage in sorted(root.glob(f"{STAGE}*")):
            found = stage / path.relative_to(root)
            linked = any(part.is_symlink() for part in (found, *found.parents) if part.is_relative_to(stage))
            if not linked and found.is_file():
                yield found


def _differ(new: Path, old: Path) -> bool:
    return new.is_file() and old.is_file() and new.read_bytes() != old.read_bytes()


def _move(stage: Path, folder: Path, first: list[str], key: str | None) -> None:
    """Move the files of the stage into the folder. If the first move fails, the folder is unchanged."""

    def turn(path: Path) -> int:
        if path.name == key:
            return len(first) + 1
        return first.index(path.name) if path.name in first else len(first)

    files = sorted((path for path in stage.rglob("*") if path.is_file()), key=turn)
    mode = stat.S_IMODE(stage.stat().st_mode) & 0o666  # the mode of a new file by the process's umask
    moved, old_key = False, None
    if key is not None and _differ(stage / key, folder / key):
        old_key = stage / f"{key}.old"
        os.replace(folder / key, old_key)
    try:
        for path in files:
            target = folder / path.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)  # safetensors writes files that only their owner can read
            os.replace(path, target)
            moved = True
    except BaseException:
        if key is not None and old_key is not None and not moved:
            os.replace(old_key, folder / key)
        raise
