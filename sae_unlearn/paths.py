"""Paths that come from elsewhere: they are paths, and may not lead out of the folder that was named."""

import os
from pathlib import Path, PurePosixPath

from sae_unlearn.errors import UnlearnError


def as_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a `Path`.

    Raises:
        UnlearnError: it is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UnlearnError(f"path={path!r:.60} is a {type(path).__name__}; give the path of a file or folder.")
    return Path(path)


def clean_subfolder(subfolder: str | None) -> str:
    """`subfolder` with single "/" and none at the ends, "" for none.

    Raises:
        UnlearnError: it leads out of the folder or repository.
    """
    if subfolder is None:
        return ""
    path = PurePosixPath(str(subfolder).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UnlearnError(f"subfolder={subfolder!r}; expected a path inside the folder or repository, without '..'.")
    return "" if path == PurePosixPath(".") else path.as_posix()


def check_inside(path: Path, root: Path) -> None:
    """Raise if `path` is a link out of `root`, so that a downloaded folder cannot point at other files of its reader.

    The Hub's cache is made of links, from `snapshots/<commit>/` to `blobs/` of the same repository; those are followed.

    Raises:
        UnlearnError: naming where it leads.
    """
    target, root = path.resolve(), root.resolve()
    allowed = [root]
    snapshots = next((folder for folder in (root, *root.parents) if folder.name == "snapshots"), None)
    if snapshots is not None:
        allowed.append(snapshots.parent / "blobs")
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise UnlearnError(f"{path} is a link to {target}, outside of the folder that was named; copy the file there.")
