"""MUSE: news articles and books to forget (Shi et al., 2024, arXiv 2407.06460; CC BY 4.0).

Hub: `muse-bench/MUSE-News` and `muse-bench/MUSE-Books`. In a folder: `knowmem/forget_qa.json`, `verbmem/forget.json`,
`raw/forget.json` and so on, or the Hub's Parquet files of the same names.
"""

from typing import Any

from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.recall import Fact


HUB_ID = "muse-bench/MUSE-News"


def muse_facts(split: str = "forget_qa", source: str = HUB_ID, revision: str | None = None) -> list[Fact]:
    """Return the questions on the articles (knowledge memorization).

    Args:
        split (str, *optional*, defaults to "forget_qa"): `forget_qa` or `retain_qa`.
        source (str, *optional*, defaults to "muse-bench/MUSE-News"): A folder, or the id of a dataset on the Hub.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
    """
    return [
        Fact(f"Question: {text_of(row, 'question', source)}\nAnswer:", (text_of(row, "answer", source),))
        for row in _rows("knowmem", split, source, revision)
    ]


def muse_passages(split: str = "forget", source: str = HUB_ID, revision: str | None = None) -> list[Fact]:
    """Return beginnings of passages with their continuations (verbatim memorization, for ROUGE-L).

    Args:
        split (str, *optional*, defaults to "forget"): The split.
        source (str, *optional*, defaults to "muse-bench/MUSE-News"): A folder, or the id of a dataset on the Hub.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
    """
    return [
        Fact(text_of(row, "prompt", source).rstrip(), (text_of(row, "gt", source).strip(),))
        for row in _rows("verbmem", split, source, revision)
    ]


def muse_texts(split: str = "forget", source: str = HUB_ID, revision: str | None = None) -> list[str]:
    """Return the texts.

    Args:
        split (str, *optional*, defaults to "forget"): `forget`, `retain1`, `retain2` or `holdout`.
        source (str, *optional*, defaults to "muse-bench/MUSE-News"): A folder, or the id of a dataset on the Hub.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
    """
    return [text_of(row, "text", source) for row in _rows("raw", split, source, revision)]


def _rows(config: str, split: str, source: str, revision: str | None) -> list[dict[str, Any]]:
    files = [f"{config}/{split}.json", f"{config}/{split}.jsonl", f"{config}/{split}-*.parquet"]
    return read_rows(source, files, config, split, revision)
