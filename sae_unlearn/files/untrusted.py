"""JSON that anybody may have written: read once, no more of it than is allowed, and nothing in it with two meanings.

Opening a file that is a file: no pipe, which would wait for ever, and no device, which has no end.

Paths that come from elsewhere: they are paths, and may not lead out of the folder that was named.

Files of one JSON value a line.
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


DEEPEST = 64  # what a fit writes nests 5 deep; whoever copies or digests much deeper values overflows the stack


def read_foreign_json(path: Path, limit: int, where: str, constants: bool = False) -> Any:
    """What the JSON file `path` holds. It is opened once, and no more of it is read than is allowed.

    Args:
        limit: bytes that it may have.
        where: the file as errors name it.
        constants: take NaN and Infinity, which are not JSON and which Python writes all the same.

    Raises:
        UnlearnError: no regular file, too large, no JSON in UTF-8, NaN or Infinity, a key that is there twice, deeper
            than `DEEPEST`, or text that is no Unicode (half of a surrogate pair).
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnlearnError(f"{where} has {path.stat().st_size} bytes, more than {limit}.")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=None if constants else _refuse_constant,
        )
        _check(value)
    except _Refused as error:
        raise UnlearnError(f"{where} {error}; download or save it again.") from None
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or an integer of 4300 digits
        raise UnlearnError(f"{where} is not JSON ({error}); download or save it again.") from error
    return value


class _Refused(Exception):
    """JSON that is refused for what it says; no `ValueError`, which is what the parser raises."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Refused(f"names {repeated[:80]!r} twice, and one value hides the other")
    return found


def _refuse_constant(name: str) -> None:
    raise _Refused(f"holds {name}, which is not JSON")


def _check(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        for text in (text for item in level for text in _texts(item)):
            if not _is_unicode(text):
                raise _Refused(f"holds {text[:80]!r}, which is no Unicode")
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


def json_lines(text: str) -> list[Any]:
    """The values; blank lines are left out. `splitlines` would divide a text at U+2028 and others, which JSON leaves as
    they are.

    Raises:
        json.JSONDecodeError: a line is not JSON.
    """
    return [json.loads(line) for line in text.split("\n") if line.strip()]
