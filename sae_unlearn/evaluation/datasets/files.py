"""Rows of a published data set, from a folder or from the Hub."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_unlearn.files.untrusted import json_lines
from sae_unlearn.install import install_command


def read_rows(
    source: str, files: Sequence[str], config: str | None = None, split: str = "test", revision: str | None = None
) -> list[dict[str, Any]]:
    """The rows of one part of a data set.

    Args:
        source: a folder, or the id of a dataset on the Hub.
        files: where the part lies in a folder: patterns, the first of which that finds something is read. `.json` (a
            list, or an object a line), `.jsonl`, `.csv` (with a header) and `.parquet`.
        config, split, revision: the part on the Hub, as in `datasets.load_dataset`.

    Raises:
        FileNotFoundError: there is no such folder or dataset, or it does not hold the part; says what was looked for.
        ImportError: `datasets` is needed and not installed; names the extra.
        ValueError: a file does not hold rows.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        for pattern in files:
            found = sorted(folder.glob(pattern))
            if found:
                return [row for path in found for row in read_file(path)]
        raise FileNotFoundError(f"Folder {source} holds none of {', '.join(files)}; give a folder that does.")
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"There is no folder {source}.")
    return _from_hub(source, config, split, revision)


def read_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.json`, `.jsonl`, `.csv` or `.parquet` file.

    Raises:
        ValueError: it does not hold rows.
    """
    if path.suffix == ".parquet":
        try:
            from pyarrow.parquet import read_table
        except ImportError as error:
            raise ImportError(f"{path.name} is Parquet, which needs `datasets`; run: {_INSTALL}") from error
        return read_table(path).to_pylist()
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else json_lines(text)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path} holds no rows: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no rows; expected a list of objects, or an object a line.")
    return rows


def text_of(row: dict[str, Any], name: str, source: str) -> str:
    """A text field of a row.

    Raises:
        ValueError: the row does not have it.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"A row of {source} has no text {name!r}, only {', '.join(map(str, row))}.")
    return value


_INSTALL = install_command("eval")


def _from_hub(source: str, config: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{source} is no folder here, and the Hub needs `datasets`; run: {_INSTALL}") from error
    try:
        return list(load_dataset(source, config, split=split, revision=revision))
    except Exception as error:  # of every kind: without a network, without the dataset, without the part
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"{source} is no folder here, and the Hub does not give {config or 'its'}/{split}: {type(error).__name__}: "
            f"{reason}"
        ) from error
