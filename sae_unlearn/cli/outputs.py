"""Checks of a command's output, before anything is loaded: folders, files and pictures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from sae_unlearn.errors import UnlearnError


def output_folder(name: str, option: str = "--output") -> Path:
    """Return the output folder after a check, without creating it: a run that fails leaves no folder.

    Args:
        name (str): Value of the option.
        option (str, *optional*, defaults to "--output"): Its name, for the errors.

    Raises:
        NotADirectoryError: If it is a file, or in one, or has no name.
        PermissionError: If it cannot be written.
    """
    if not name.strip():
        raise NotADirectoryError(f"{option}: expected a folder, got an empty name.")
    path = Path(name).expanduser()
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{option} {name}: expected a folder, got the file {there}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{option} {name}: {there} cannot be written. Pass another folder.")
    return path


def new_file(name: str, option: str) -> Path:
    """Return a file to write, after a check that it can be written.

    Args:
        name (str): Value of the option.
        option (str): Its name, for the errors.

    Raises:
        NotADirectoryError: If its folder does not exist.
        IsADirectoryError: If it is a folder.
        PermissionError: If its folder cannot be written.
    """
    path = Path(name).expanduser()
    folder = path.absolute().parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{option} {name}: the folder {path.parent} does not exist. Make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{option} {name}: expected a file, got a folder.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"{option} {name}: it cannot be written. Pass another file.")
    return path


def picture_file(name: str) -> Path:
    """Return the file of `--picture`, after a check that it can be drawn and written.

    Raises:
        UnlearnError: If its name does not end in ".png".
        ImportError: If matplotlib is not installed; names the extra.
        OSError: As from `new_file`.
    """
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB

    path = new_file(name, "--picture")
    if path.suffix.lower() != ".png":
        raise UnlearnError(f"--picture {name}: expected a name that ends in .png, the format of the picture.")
    if find_spec("matplotlib") is None:
        raise ImportError(NO_MATPLOTLIB)
    return path


@contextmanager
def not_left_empty(path: Path) -> Iterator[None]:
    """Remove the new folder `path` if the block fails or is interrupted and it is empty.

    Args:
        path (Path): The output folder of a command whose libraries create it before they write.
    """
    before = path.exists()
    try:
        yield
    except BaseException:
        if not before:
            with suppress(OSError):  # it does not exist, or is not empty
                path.rmdir()
        raise
