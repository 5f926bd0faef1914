"""Rows of a file, and splits of a dataset."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.untrusted import json_lines
from sae_unlearn.install import install_command


ENCODING = "utf-8-sig"  # with or without the byte order mark of some editors


def rows_of_file(path: Path) -> list[Any]:
    """Return the rows of a file.

    Args:
        path (Path): A `.json` file (a list, or one value per line), `.jsonl`, `.csv` or `.tsv` (with a header), or
            `.parquet`.

    Raises:
        ImportError: If the file is Parquet and `pyarrow` is not installed. The message names the extra.
        UnlearnError: If the file does not hold rows.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    try:
        if kind in (".csv", ".tsv"):
            lines = io.StringIO(read_text(path), newline="")
            return list(csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ","))
        text = read_text(path)
        return json_lines(text) if kind == ".jsonl" else _json(text)
    except json.JSONDecodeError as error:
        raise UnlearnError(f"{path}: expected JSON, got {error}.") from error
    except csv.Error as error:
        raise UnlearnError(f"{path}: expected CSV, got {error}. Save it as .jsonl.") from error


def read_text(path: Path, encoding: str = ENCODING) -> str:
    """Return the text of a file, its lines ended by a newline character.

    Args:
        path (Path): The file.
        encoding (str, *optional*, defaults to UTF-8): Its encoding, for UTF-8 with or without a byte order mark.

    Raises:
        UnlearnError: If it is in another encoding, or no text.
    """
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == ENCODING else encoding
        raise UnlearnError(f"{path}: expected {name}, got {error}. Save it as UTF-8.") from error
    except LookupError as error:
        raise UnlearnError(f"{path}: expected a known encoding, got {encoding!r:.40}. Save it as UTF-8.") from error
    if "\0" in text:
        raise UnlearnError(f"{path}: expected a text, got bytes that are 0. Give another file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return json_lines(text)
    return found if isinstance(found, list) else [found]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise ImportError(f"Reading {path.name} needs `pyarrow`; run: {install_command('texts')}") from error
    try:
        return list(read_table(path).to_pylist())
    except Exception as error:  # pyarrow raises several kinds for files that are not Parquet, or damaged
        raise UnlearnError(f"{path}: expected Parquet, got {_short(error)}.") from error


def load_split(source: str, config: str | None = None, split: str = "train", revision: str | None = None) -> Any:
    """Return a split of a dataset.

    Args:
        source (str): A folder that `datasets` saved or reads, or the id of a dataset on the Hub.
        config (str, *optional*): As in `datasets.load_dataset`.
        split (str, *optional*, defaults to "train"): As in `datasets.load_dataset`.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the dataset does not exist, does not have the part, or cannot be downloaded.
        ImportError: If `datasets` is not installed. The message names the extra.
        UnlearnError: If a saved dataset does not have the split.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"source={source!r}: not a file, and a dataset needs `datasets`; run: {install_command('eval')}"
        ) from error
    folder = Path(source).expanduser()
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    try:
        found = (
            datasets.load_from_disk(str(folder))
            if saved
            else datasets.load_dataset(source, config, split=split, revision=revision)
        )
    except Exception as error:  # any kind: no network, an unknown dataset or part
        raise FileNotFoundError(
            f"source={source!r}: expected a folder, or a Hub dataset with {config or ''}/{split}; {_short(error)}"
        ) from error
    if saved and isinstance(found, dict):
        if split not in found:
            raise UnlearnError(f"split={split!r}: expected one of {', '.join(found)} of {source}.")
        return found[split]
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
