"""Rows of a published data set, from a folder or from the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.hub import FileTree
from sae_unlearn.files.rows import load_split, rows_of_file


def read_rows(
    source: str, files: Sequence[str], config: str | None = None, split: str = "test", revision: str | None = None
) -> list[dict[str, Any]]:
    """Return the rows of one part of a data set.

    Args:
        source (str): A folder, or the id of a dataset on the Hub.
        files (sequence of str): Patterns of the part in a folder. The first match is read: `.json` (a list, or one
            object per line), `.jsonl`, `.csv` (with a header) or `.parquet`.
        config (str, *optional*): As in `datasets.load_dataset`.
        split (str, *optional*, defaults to "test"): As in `datasets.load_dataset`.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the folder, the dataset or the part does not exist. The message names the patterns.
        ImportError: If `datasets` is needed and not installed. The message names the extra.
        UnlearnError: If a file does not hold rows, or `revision` is given for a folder.
    """
    tree = FileTree(source, revision=revision, dataset=True)
    tree.check_source()
    if tree.root is None:  # `datasets` reads parts, whose files the Hub may keep in another format
        return list(load_split(source, config, split, revision))
    for pattern in files:
        found = sorted(tree.root.glob(pattern))
        if found:
            return [row for path in found for row in read_file(path)]
    raise FileNotFoundError(f"source={source!r}: expected a folder with one of {', '.join(files)}.")


def read_file(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, see `files.rows.rows_of_file`.

    Raises:
        ImportError: If the file is Parquet and `pyarrow` is not installed.
        UnlearnError: If the file does not hold objects.
    """
    rows = rows_of_file(path)
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UnlearnError(f"{path}: expected a list of objects, or one object per line.")
    return rows


def text_of(row: dict[str, Any], name: str, source: str) -> str:
    """Return a text field of a row.

    Raises:
        UnlearnError: If the row does not have it.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise UnlearnError(f"{source}: expected rows with a text {name!r}, got {', '.join(map(str, row))}.")
    return value
