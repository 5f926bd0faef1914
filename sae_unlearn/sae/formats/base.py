"""The published formats that can be read, found by the files in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sae_unlearn.sae.errors import SAEFormatError
from sae_unlearn.sae.folder import SAEFolder
from sae_unlearn.sae.weights import SAEWeights


Find = Callable[[Collection[str]], tuple[str, ...] | None]
"""From the paths of all files below a folder to those that a format's SAE is made of; None where it is not one."""


@dataclass(frozen=True)
class Reader:
    """One published format.

    Attributes:
        name: short name, e.g. "saelens"; kept in `SparseAutoencoder.source["format"]`.
        layout: the files, in words, for error messages.
        find: given the paths of all files below a folder (relative, with "/"), the ones to fetch and read, or None
            where the folder is not of this format.
        read: the folded weights, from a folder in which the found files lie on disk.
    """

    name: str
    layout: str
    find: Find
    read: Callable[[SAEFolder], SAEWeights]


UNREADABLE = {
    "a temporal SAE, whose features depend on earlier tokens": re.compile(r"latest_ckpt\.safetensors"),
    "an SAE of the attention heads' outputs, not of the residual stream": re.compile(r"[\w.+-]+_Hcat_z_[\w.+-]+\.pt"),
}
"""What is published for other purposes and will not be read, told by the name of its file."""

READERS: dict[str, Reader] = {}


def needs(*required: str, optional: tuple[str, ...] = ()) -> Find:
    """A `find` for formats with fixed file names: all `required`, and those of `optional` that are there."""

    def find(names: Collection[str]) -> tuple[str, ...] | None:
        if not all(name in names for name in required):
            return None
        return required + tuple(name for name in optional if name in names)

    return find


def one_of(file: re.Pattern[str]) -> Find:
    """A `find` for formats with a file per layer: the one called so. A folder with several is no SAE but a choice."""

    def find(names: Collection[str]) -> tuple[str, ...] | None:
        files = tuple(name for name in names if file.fullmatch(name))
        return files if len(files) == 1 else None

    return find


def register_reader(reader: Reader) -> None:
    """Makes a format known to `SparseAutoencoder.from_pretrained`.

    Raises:
        ValueError: a reader of that name is there already.
    """
    if not isinstance(reader, Reader):
        raise TypeError(f"expected a Reader, got {type(reader).__name__}; see sae_unlearn.sae.formats.Reader")
    if reader.name in READERS:
        raise ValueError(f"a reader named {reader.name!r} is registered already; give yours another name")
    READERS[reader.name] = reader


def matching_readers(names: Collection[str]) -> list[tuple[Reader, tuple[str, ...]]]:
    """Every reader that recognises a folder with these files, with the files that it reads."""
    found = ((reader, reader.find(names)) for reader in READERS.values())
    return [(reader, files) for reader, files in found if files]


def find_reader(names: Collection[str], where: str) -> tuple[Reader, tuple[str, ...]]:
    """The one reader for a folder with these files, and the files that it reads.

    Args:
        names: paths of all files below the folder, relative, with "/".
        where: the folder, for messages.

    Raises:
        SAEFormatError: none fits, or several do.
    """
    matches = matching_readers(names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        kinds = " and ".join(f"{reader.name} ({reader.layout})" for reader, _ in matches)
        raise SAEFormatError(f"{where} fits several formats: {kinds}; keep the files of one SAE per folder")
    for kind, file in UNREADABLE.items():
        found = next((name for name in sorted(names) if file.fullmatch(name)), None)
        if found is not None:
            raise SAEFormatError(
                f"{where} holds {found}: {kind}; use one that reads the residual stream token by token"
            )
    known = "; ".join(f"{reader.name}: {reader.layout}" for reader in READERS.values())
    raise SAEFormatError(f"no known SAE format in {where}, which holds {summary(names)}. Known formats: {known}")


def summary(names: Collection[str], limit: int = 8) -> str:
    """The first few of `names`, and how many more there are."""
    shown = sorted(names, key=lambda name: (name.count("/"), name))[:limit]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(shown) or "no files") + more
