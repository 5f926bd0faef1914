"""Labels of an SAE's features, from the public exports of neuronpedia.org or from a copy of them.

The exports are files `v1/MODEL/SET/explanations/batch-N.jsonl.gz`, one JSON object a line with `index` and
`description`; features are not in their order, so all batches of an SAE are read. The labels were written by language
models from each feature's top activations, so they are hints. Nothing is downloaded unless it is asked for.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from html import unescape
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote, urlencode
from urllib.request import urlopen

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.terminal import printable
from sae_unlearn.files.untrusted import open_regular


EXPORTS = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
NEURONPEDIA = "neuronpedia"
"""Source of labels that downloads the SAE's exports."""
LONGEST = 200  # characters of a label
MAX_FILES, MAX_BYTES = 4096, 2**28  # of an export, and of one of its files unpacked
TIMEOUT = 60.0  # seconds of a request
_SUFFIXES = (".jsonl", ".jsonl.gz")


def feature_labels(source: str, features: Iterable[int], identity: str | None = None) -> dict[int, str]:
    """Return the labels of features; those without one are left out.

    Args:
        source (str): `"neuronpedia"` to download the exports of `identity`; or a file `.jsonl` or `.jsonl.gz` of an
            export, or a folder of them.
        features (Iterable[int]): Ids of the features.
        identity (str, *optional*): The SAE's id at neuronpedia.org, such as "gemma-2-2b/12-gemmascope-res-16k".

    Raises:
        UnlearnError: If the SAE has no id or no export, or a file of the export is malformed or too large.
        FileNotFoundError: If the file does not exist.
        OSError: If it cannot be downloaded.
    """
    wanted, found = {int(feature) for feature in features}, dict[int, str]()
    for name, data in _downloaded(identity) if source == NEURONPEDIA else _local(Path(source).expanduser()):
        for number, label in _labels(name, data):
            if number in wanted:
                found.setdefault(number, label)
        if len(found) == len(wanted):
            break
    return found


def _labels(name: str, data: bytes) -> Iterator[tuple[int, str]]:
    text = (_unpacked(name, data) if name.endswith(".gz") else data).decode("utf-8", errors="replace")
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            number, label = int(row["index"]), row["description"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UnlearnError(f"Line {place} of {name}: expected `index` and `description`. Get it again.") from error
        if isinstance(label, str) and label.strip():
            yield number, printable(" ".join(label.split()), LONGEST)


def _unpacked(name: str, data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise UnlearnError(f"{name} is not a gzip file ({error}). Get it again.") from error
    if len(found) > MAX_BYTES:
        raise UnlearnError(f"{name} is larger than {MAX_BYTES} bytes unpacked. Get it again.")
    if not stream.eof:
        raise UnlearnError(f"{name} is cut off. Get it again.")
    rest = stream.unused_data
    return found + gzip.decompress(rest) if rest.startswith(b"\x1f\x8b") else found


def _local(path: Path) -> Iterator[tuple[str, bytes]]:
    files = sorted(each for each in path.rglob("*") if each.name.endswith(_SUFFIXES)) if path.is_dir() else [path]
    if not path.exists():
        raise FileNotFoundError(f"labels={str(path)!r}: the file does not exist. Pass one, or {NEURONPEDIA!r}.")
    if not files or not files[0].name.endswith(_SUFFIXES):
        raise UnlearnError(f"labels={str(path)!r}: expected .jsonl or .jsonl.gz of an export. Pass such a file.")
    for each in files[:MAX_FILES]:
        with open_regular(each) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UnlearnError(f"{each.name} is larger than {MAX_BYTES} bytes. Get it again.")
        yield each.name, data


def _downloaded(identity: str | None) -> Iterator[tuple[str, bytes]]:
    if identity is None:
        raise UnlearnError(
            "labels='neuronpedia': expected an SAE with an id there, got one without. Pass a file of its export."
        )
    prefix = f"v1/{identity}/explanations/"
    names = _listed(prefix)
    if not names:
        raise UnlearnError(f"labels='neuronpedia': found no export of {identity}. Pass a file of labels, or none.")
    for name in names:
        yield name, _fetched(f"{EXPORTS}/{quote(name)}")


def _listed(prefix: str) -> list[str]:
    """The names of the export's files. The listing comes in pages of a thousand."""
    found, token = list[str](), ""
    while True:
        asked = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
        page = _fetched(f"{EXPORTS}/?{urlencode(asked)}").decode("utf-8", errors="replace")
        keys = [unescape(key) for key in re.findall(r"<Key>([^<]*)</Key>", page)]
        found += [key for key in keys if key.startswith(prefix) and key.endswith(_SUFFIXES)]
        following = re.search(r"<NextContinuationToken>([^<]+)</NextContinuationToken>", page)
        if following is None or len(found) >= MAX_FILES:
            return sorted(found[:MAX_FILES], key=lambda key: (len(key), key))
        token = unescape(following[1])


def _fetched(url: str) -> bytes:
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:  # https, or what a caller set EXPORTS to
            data: bytes = answer.read(MAX_BYTES + 1)
    except (URLError, TimeoutError) as error:
        raise OSError(f"Could not download {url} ({error}). Pass a file of labels, or none.") from error
    if len(data) > MAX_BYTES:
        raise UnlearnError(f"{url} is larger than {MAX_BYTES} bytes. Pass a file of labels, or none.")
    return data
