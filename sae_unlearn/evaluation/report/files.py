"""Files of a report: JSON, Markdown and a picture, and checked reading of the JSON."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.atomic import staged
from sae_unlearn.files.untrusted import as_path


Read = TypeVar("Read")


def write_report(
    folder: str | os.PathLike[str],
    name: str,
    values: Mapping[str, Any],
    markdown: str,
    draw: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write `<name>.json`, `<name>.md` and, if matplotlib is installed, `<name>.png`.

    Each file is replaced as a whole, and none if one cannot be written.

    Args:
        folder (str or PathLike): Created if it does not exist.
        name (str): Name of the files.
        values (mapping): Content of the JSON file.
        markdown (str): Content of the Markdown file.
        draw (callable, *optional*): Draws the picture at a path. None for reports without a picture.

    Returns:
        The written files.

    Raises:
        UnlearnError: If the folder cannot be written.
    """
    folder = as_path(folder)
    names = [f"{name}.json", f"{name}.md"]
    with staged(folder) as stage:
        (stage / names[0]).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (stage / names[1]).write_text(markdown, encoding="utf-8")
        if draw is not None:
            with suppress(ImportError):  # the picture is optional
                draw(stage / f"{name}.png")
                names.append(f"{name}.png")
    return [folder / written for written in names]


def read_report(source: str | os.PathLike[str], name: str, what: str, parse: Callable[[Any], Read]) -> Read:
    """Return a saved report, as `parse` reads its JSON.

    Args:
        source (str or PathLike): The folder, or the JSON file.
        name (str): Name of the files, as in `write_report`.
        what (str): Subject of the report, for errors.
        parse (callable): Reader of the JSON value. It raises ValueError for a value of another kind.

    Raises:
        FileNotFoundError: If the file does not exist.
        UnlearnError: If it is not such a report.
    """
    path = as_path(source)
    path = path / f"{name}.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"source={str(source)!r}: expected a folder with {name}.json, or that file.")
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UnlearnError(f"{path}: expected a report of {what}, got {error}") from error


class StoredReport(ABC):
    """A report that can be saved in a folder and loaded again.

    Attributes:
        stem (str): Name of the files, without their ending.
        about_what (str): Subject of the report, for errors.
        has_picture (bool): True if a picture is drawn.
    """

    stem: ClassVar[str]
    about_what: ClassVar[str]
    has_picture: ClassVar[bool] = True

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the report as JSON, as Markdown and, if matplotlib is installed, as a picture.

        An evaluation is saved as `report.json`, `report.md` and `report.png`, an audit as `audit.json` and so on, and a
        comparison as `comparison.json` and `comparison.md`.

        Args:
            folder (str or PathLike): Created if it does not exist.

        Returns:
            The written files.

        Raises:
            UnlearnError: If the folder cannot be written.
        """
        draw = self._draw if self.has_picture else None
        return write_report(folder, self.stem, self.to_dict(), self.to_markdown(), draw)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Self:
        """Load a report that `save` wrote.

        Args:
            source (str or PathLike): The folder, or the JSON file.

        Raises:
            FileNotFoundError: If the file does not exist.
            UnlearnError: If it is not a report of this kind.
        """
        return read_report(source, cls.stem, cls.about_what, cls.from_dict)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the report as a mapping of plain values."""

    @abstractmethod
    def to_markdown(self) -> str:
        """Return the report as Markdown."""

    @abstractmethod
    def to_card(self) -> str:
        """Return the part that a card shows, as Markdown with the title as a first-level heading."""

    @classmethod
    @abstractmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return the report from a mapping that `to_dict` made."""

    def _draw(self, path: Path) -> None:
        """Draw the picture at `path`."""
        raise NotImplementedError


@contextmanager
def read_as(what: str) -> Iterator[None]:
    """Raise any error of a missing or wrong value inside the `with` block as a ValueError that names it.

    Args:
        what (str): Name of the value that is read.
    """
    try:
        yield
    except KeyError as error:
        raise UnlearnError(f"{what}: expected a field {error}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UnlearnError(f"{what}: {error}") from error
