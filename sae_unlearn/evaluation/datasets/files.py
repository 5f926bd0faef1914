"""Rows of a published data set, from a folder or from the Hub."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.untrusted import json_lines
from sae_unlearn.install import install_command


_INSTALL = install_command("eval")


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
        UnlearnError: If a file does not hold rows.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        for pattern in files:
            found = sorted(folder.glob(pattern))
            if found:
                return [row for path in found for row in read_file(path)]
        raise FileNotFoundError(f"source={source!r}: expected a folder with one of {', '.join(files)}.")
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"source={source!r}: expected a folder that exists.")
    return _from_hub(source, config, split, revision)


def read_file(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `.json`, `.jsonl`, `.csv` or `.parquet` file.

    Raises:
        ImportError: If the file is Parquet and `pyarrow` is not installed.
        UnlearnError: If the file does not hold rows.
    """
    if path.suffix == ".parquet":
        try:
            from pyarrow.parquet import read_table
        except ImportError as error:
            raise ImportError(f"{path.name}: reading Parquet needs `pyarrow`; run: {_INSTALL}") from error
        return read_table(path).to_pylist()
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else json_lines(text)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UnlearnError(f"{path}: expected rows, got {error}") from error
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


def _from_hub(source: str, config: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"source={source!r}: not a local folder, and reading the Hub needs `datasets`; run: {_INSTALL}"
        ) from error
    try:
        return list(load_dataset(source, config, split=split, revision=revision))
    except Exception as error:  # any kind: no network, an unknown dataset or part
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"source={source!r}: expected a folder, or a Hub dataset with {config or ''}/{split}; "
            f"{type(error).__name__}: {reason}"
        ) from error
