"""JSON that anybody may have written: read once, no more of it than is allowed, and nothing in it with two meanings."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.regular_file import open_regular


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
