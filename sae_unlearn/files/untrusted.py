"""Reading of untrusted files: regular files, bounded and unambiguous JSON, and paths in their folder.

A pipe would block forever and a device has no end, so both are refused before reading.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from sae_unlearn.errors import UnlearnError


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Yield the regular file `path`, open for reading.

    The check uses the descriptor that is read, so the file cannot be exchanged between check and read.

    Raises:
        UnlearnError: If it is a pipe, a device, a socket or a folder.
        OSError: If it cannot be opened.
    """
    do_not_block = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its writer
    descriptor = os.open(path, os.O_RDONLY | do_not_block | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnlearnError(f"{path} is not a regular file. Copy the file there.")
        yield file


def check_regular(path: Path) -> None:
    """Raise unless `path` is a file or a link to one; for libraries that open it themselves.

    Raises:
        UnlearnError: If it is a pipe, a device, a socket or a folder.
    """
    if path.exists() and not path.is_file():
        raise UnlearnError(f"{path} is not a regular file. Copy the file there.")


DEEPEST = 64  # a fitted config nests 5 deep; copying or digesting much deeper values overflows the stack


def read_foreign_json(path: Path, limit: int, where: str, constants: bool = False) -> Any:
    """Return the content of a JSON file. It is opened once, and at most `limit` bytes are read.

    Args:
        path (Path): The file.
        limit (int): Largest size in bytes.
        where (str): The name of the file in errors.
        constants (bool, *optional*, defaults to False): Accept NaN and Infinity, which Python writes although they are
            not JSON.

    Raises:
        UnlearnError: If it is not a regular file, too large, not JSON in UTF-8, has NaN or Infinity, has a key twice,
            nests deeper than `DEEPEST`, or has text that is not Unicode (half of a surrogate pair).
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnlearnError(f"{where} has {path.stat().st_size} bytes, more than {limit}. Download or save it again.")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=None if constants else _refuse_constant,
        )
        _check(value)
    except _Refused as error:
        raise UnlearnError(f"{where} {error}. Download or save it again.") from None
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or an integer of 4300 digits
        raise UnlearnError(f"{where} is not JSON ({error}). Download or save it again.") from error
    return value


class _Refused(Exception):
    """JSON is refused for its content. Not a `ValueError`, which the parser raises."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Refused(f"has the key {repeated[:80]!r} twice")
    return found


def _refuse_constant(name: str) -> None:
    raise _Refused(f"holds {name}, which is not JSON")


def _check(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        for text in (text for item in level for text in _texts(item)):
            if not _is_unicode(text):
                raise _Refused(f"holds {text[:80]!r}, which is not Unicode")
        level = [part for item in level for part in _parts(item)]
        if not level:
            return
    raise _Refused(f"nests deeper than {DEEPEST} levels")


def _texts(item: Any) -> list[str]:
    if isinstance(item, dict):
        return list(item)
    return [item] if isinstance(item, str) else []


def _parts(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return `path` as a `Path`.

    Raises:
        UnlearnError: If it is neither a string nor a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UnlearnError(f"path={path!r:.60}: expected the path of a file or folder, got {type(path).__name__}.")
    return Path(path)


def clean_subfolder(subfolder: str | None) -> str:
    """Return `subfolder` with single "/" and none at its ends; "" for None.

    Raises:
        UnlearnError: If it leads out of the folder or repository.
    """
    if subfolder is None:
        return ""
    path = PurePosixPath(str(subfolder).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UnlearnError(f"subfolder={subfolder!r}: expected a path inside the folder or repository, without '..'.")
    return "" if path == PurePosixPath(".") else path.as_posix()


def check_inside(path: Path, root: Path) -> None:
    """Raise if `path` is a link out of `root`: a downloaded folder must not point at the user's files.

    The Hub's cache links from `snapshots/<commit>/` to `blobs/` of the same repository; these links are allowed.

    Raises:
        UnlearnError: If it leads out of `root`.
    """
    target, root = path.resolve(), root.resolve()
    allowed = [root]
    snapshots = next((folder for folder in (root, *root.parents) if folder.name == "snapshots"), None)
    if snapshots is not None:
        allowed.append(snapshots.parent / "blobs")
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise UnlearnError(f"{path} is a link to {target}, outside of its folder. Copy the file there.")


def json_lines(text: str) -> list[Any]:
    """Return the values of text with one JSON value a line; blank lines are skipped.

    `splitlines` would also split at U+2028 and others, which JSON strings may contain.

    Raises:
        json.JSONDecodeError: If a line is not JSON, with the line's number in the text.
    """
    values, start = [], 0
    for line in text.split("\n"):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
        start += len(line) + 1
    return values
