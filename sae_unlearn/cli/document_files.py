"""Texts from documents: PDF, HTML, Parquet, Markdown, and folders of them."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sae_unlearn.install import install_command


DOCUMENTS = (".txt", ".md", ".pdf", ".html", ".htm")
"""A folder with one of these is read file by file; any other folder is a data set."""
READABLE = (*DOCUMENTS, ".json", ".jsonl", ".csv", ".tsv", ".parquet")
LEAST_WORDS = 4  # of a page or a paragraph; less is a page number or a label
MAX_FILES = 10_000
_LEFT_OUT = ("script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template")
_BLOCKS = ("p", "li", "h1", "h2", "h3", "h4", "blockquote", "pre", "td", "dd")


def files_of(folder: Path) -> list[Path] | None:
    """The files of a folder of documents, sorted by name, hidden ones left out; None if it is not one.

    Raises:
        ValueError: If there are too many.
    """
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if path.suffix.lower() in READABLE and path.is_file() and not any(part.startswith(".") for part in inside):
            found.append(path)
        if len(found) > MAX_FILES:
            raise ValueError(f"{folder} holds more than {MAX_FILES:,} files; give a smaller folder.")
    return sorted(found) if any(path.suffix.lower() in DOCUMENTS for path in found) else None


def read_pdf(path: Path) -> list[str]:
    """The pages of a PDF with text on them.

    Raises:
        ImportError: If `pypdf` is not installed; names the extra.
        ValueError: If it cannot be read, or holds no text.
    """
    pypdf = _imported("pypdf", path)
    try:
        with path.open("rb") as file:
            pages = [page.extract_text() or "" for page in pypdf.PdfReader(file).pages]
    except Exception as error:  # pypdf raises many kinds on files that are not PDF, or broken
        raise ValueError(f"{path} cannot be read as a PDF: {' '.join(str(error).split())[:200]}") from error
    texts = _worth_reading(re.sub(r"[ \t]*\n[ \t]*", "\n", page).strip() for page in pages)
    if not texts:
        raise ValueError(f"{path} holds no text; scanned pages need OCR first.")
    return texts


def read_html(path: Path, text: str) -> list[str]:
    """Headings, paragraphs, list items and cells of an HTML page, without menus, scripts and footers.

    Raises:
        ImportError: If Beautiful Soup is not installed; names the extra.
    """
    soup = _imported("bs4", path).BeautifulSoup(text, "html.parser")
    for tag in soup(_LEFT_OUT):
        tag.decompose()
    blocks = [tag for tag in soup.find_all(_BLOCKS) if not tag.find(_BLOCKS)]
    return _worth_reading(" ".join(tag.get_text(" ").split()) for tag in blocks)


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file.

    Raises:
        ImportError: If `pyarrow` is not installed; names the extra.
        ValueError: If it cannot be read.
    """
    parquet = _imported("pyarrow.parquet", path)
    try:
        return list(parquet.read_table(path).to_pylist())
    except Exception as error:
        raise ValueError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def read_folder(folder: Path, files: list[Path], read: Callable[[Path], list[str]]) -> list[str]:
    """The texts of all files, one after the other.

    Raises:
        ValueError: If there are none.
    """
    texts = [text for path in files for text in read(path)]
    if not texts:
        raise ValueError(f"{folder} holds no texts.")
    return texts


def _worth_reading(texts: Any) -> list[str]:
    return [text for text in texts if len(text.split()) >= LEAST_WORDS]


def _imported(module: str, path: Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = {"bs4": "beautifulsoup4"}.get(module, module.partition(".")[0])
        raise ImportError(f"Reading {path.name} needs `{package}`; run: {install_command('texts')}") from error
