"""The files of a report: JSON, Markdown, and a picture where it can be drawn.

What was read from JSON, and may be anything.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sae_unlearn.files.atomic import staged


Read = TypeVar("Read")


def write_report(
    folder: str | os.PathLike[str],
    name: str,
    values: Mapping[str, Any],
    markdown: str,
    draw: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write `<name>.json`, `<name>.md`, and with matplotlib `<name>.png`; returns what was written. Each is replaced as
    a whole, and none if one cannot be written.

    Args:
        folder: made if it is not there.
        draw: draws the picture at a path; None where there is none to draw.

    Raises:
        UnlearnError: the folder cannot be written.
    """
    folder = Path(folder)
    names = [f"{name}.json", f"{name}.md"]
    with staged(folder) as stage:
        (stage / names[0]).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (stage / names[1]).write_text(markdown, encoding="utf-8")
        if draw is not None:
            with suppress(ImportError):  # a report without its picture is still a report
                draw(stage / f"{name}.png")
                names.append(f"{name}.png")
    return [folder / written for written in names]


def read_report(source: str | os.PathLike[str], name: str, what: str, parse: Callable[[Any], Read]) -> Read:
    """What `parse` makes of a report that was saved.

    Args:
        source: its folder or its JSON file.
        name: of its files, as for `write_report`.
        what: what it is a report of, for errors.
        parse: raises ValueError on values that are none of its own.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one.
    """
    path = Path(source)
    path = path / f"{name}.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no {name} at {source}; give a folder with {name}.json, or that file.")
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is no report of {what}: {error}") from error


@contextmanager
def read_as(what: str) -> Iterator[None]:
    """Within it, whatever a value that is missing or of another kind raises is a `ValueError`, naming it.

    Args:
        what: that is being read.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"This is no {what}: it has no {error}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"This is no {what}: {error}") from error
