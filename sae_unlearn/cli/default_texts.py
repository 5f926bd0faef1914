"""`--retain default`: paragraphs of a small public corpus of the Hub, for a first fit.

The corpus is WikiText-2 (`Salesforce/wikitext`, CC BY-SA 3.0): articles of the English Wikipedia, in one Parquet file
of 6 MB. It is downloaded once, into the Hub's cache. The paragraphs are evenly spaced over all articles, and the
corpus's spaces around punctuation are removed.
"""

import re
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.rows import rows_of_file


DEFAULT = "default"
REPOSITORY = "Salesforce/wikitext"
FILE = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
COLUMN = "text"
PARAGRAPHS = 800
LEAST_WORDS = 40
_REPAIRS = (
    (r" @(.)@ ", r"\1"),
    (r" ([.,;:!?)\]%]|'s|n't|'re|'ve|'ll|'d|'m)(?=[\s.,;:!?)\]'\"])", r"\1"),
    (r"([(\[$£]) ", r"\1"),
    (r'" ([^"\n]*?) "', r'"\1"'),
)


def default_texts(revision: str | None = None) -> list[str]:
    """Return the paragraphs.

    Args:
        revision (str, *optional*): Branch, tag or commit of the corpus; its newest state without it.

    Raises:
        ImportError: If `pyarrow` is not installed; names the extra.
        UnlearnError: If the corpus cannot be downloaded, or its file holds other things.
    """
    from sae_unlearn.files.hub import FileTree

    try:
        path = FileTree(REPOSITORY, revision=revision, dataset=True).fetch(FILE)
    except Exception as error:  # any kind: no network, an unknown revision
        raise UnlearnError(
            f"--retain default: could not download {FILE} of {REPOSITORY} ({type(error).__name__}). Pass texts of "
            "yours."
        ) from error
    rows: list[Any] = rows_of_file(path)
    found = [repaired(row[COLUMN]) for row in rows if isinstance(row.get(COLUMN), str)]
    found = [text for text in found if len(text.split()) >= LEAST_WORDS and not text.startswith("=")]
    if not found:
        raise UnlearnError(f"--retain default: {FILE} holds no paragraphs. Pass texts of yours.")
    count = min(PARAGRAPHS, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def repaired(text: str) -> str:
    """Return a paragraph without the corpus's spaces around punctuation."""
    for pattern, replacement in _REPAIRS:
        text = re.sub(pattern, replacement, text)
    return text.strip()
