"""Texts from documents: PDF, HTML, Parquet, Markdown, and folders of them."""

import codecs
import re
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.rows import ENCODING, read_text
from sae_unlearn.install import install_command


DOCUMENTS = (".txt", ".md", ".pdf", ".html", ".htm")
"""A folder with one of these is read file by file; any other folder is a data set."""
READABLE = (*DOCUMENTS, ".json", ".jsonl", ".csv", ".tsv", ".parquet")
LEAST_WORDS = 4  # of a page or a paragraph; less is a page number or a label
MAX_FILES = 10_000
_LEFT_OUT = ("head", "script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template")
_INNER = ("p", "li", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "td", "th", "dt", "dd", "figcaption")
_BLOCKS = (*_INNER, "div", "section", "article", "main", "body")


def files_of(folder: Path) -> list[Path] | None:
    """The files of a folder of documents, sorted by name, hidden ones left out; None if it is not one.

    Raises:
        UnlearnError: If there are too many, or none of any kind.
    """
    found, others = [], Counter[str]()
    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix.lower() in READABLE:
            found.append(path)
        else:
            others[path.suffix.lower() or path.name] += 1
        if len(found) > MAX_FILES:
            raise UnlearnError(f"{folder} holds more than {MAX_FILES:,} files; give a smaller folder.")
    if not found and not others:
        raise UnlearnError(f"{folder}: expected files, got none. Give a folder with texts.")
    documents = [path for path in found if path.suffix.lower() in DOCUMENTS]
    card_alone = documents == [folder / "README.md"] and len(found) > 1  # of a data set of the Hub: none of its texts
    if not documents or card_alone:
        return None
    if others:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in others.most_common(5))
        warnings.warn(f"{folder}: files of other kinds are not read: {kinds}. Convert them to text.", stacklevel=2)
    return sorted(found)


def read_pdf(path: Path) -> list[str]:
    """The pages of a PDF with text on them.

    Raises:
        ImportError: If `pypdf` is not installed; names the extra.
        UnlearnError: If it cannot be read, or holds no text.
    """
    pypdf = _imported("pypdf", path)
    try:
        with path.open("rb") as file:
            pages = [page.extract_text() or "" for page in pypdf.PdfReader(file).pages]
    except Exception as error:  # pypdf raises many kinds on files that are not PDF, or broken
        raise UnlearnError(f"{path} cannot be read as a PDF: {' '.join(str(error).split())[:200]}") from error
    texts = _worth_reading(re.sub(r"[ \t]*\n[ \t]*", "\n", page).strip() for page in pages)
    if not texts:
        raise UnlearnError(f"{path} holds no text; scanned pages need OCR first.")
    return texts


def read_html(path: Path) -> list[str]:
    """Text of the innermost blocks of an HTML page, without menus, scripts and footers.

    The encoding is the one that the page declares, or else UTF-8.

    Raises:
        ImportError: If Beautiful Soup is not installed; names the extra.
        UnlearnError: If it is not text in that encoding.
    """
    bs4 = _imported("bs4", path)
    content = path.read_bytes()
    declared = bs4.dammit.EncodingDetector.find_declared_encoding(content, is_html=True)
    if declared in (None, "utf-8") or content.startswith(codecs.BOM_UTF8):
        declared = ENCODING
    text = read_text(path, declared)
    soup = bs4.BeautifulSoup(text, "html.parser")
    for tag in soup(_LEFT_OUT):
        tag.decompose()
    found: dict[int, list[str]] = {}
    last = None
    for string in soup.find_all(string=True):
        block = string.find_parent(_BLOCKS) or soup
        if type(string) is bs4.NavigableString:  # not a comment
            apart = " " if block is not last else ""  # another block stands in between
            found.setdefault(id(block), []).append(f"{apart}{string}")
            last = block
    return _worth_reading(" ".join("".join(strings).split()) for strings in found.values())


def read_folder(folder: Path, files: list[Path], read: Callable[[Path], list[str]]) -> list[str]:
    """The texts of all files, one after the other.

    Raises:
        UnlearnError: If there are none.
    """
    by_file = {path: read(path) for path in files}
    texts = [text for found in by_file.values() for text in found]
    empty = [path.name for path, found in by_file.items() if not found]
    if texts and empty:
        warnings.warn(f"{folder}: {len(empty)} files hold no texts: {', '.join(empty[:5])}.", stacklevel=2)
    if not texts:
        raise UnlearnError(f"{folder} holds no texts.")
    return texts


def _worth_reading(texts: Any) -> list[str]:
    return [text for text in texts if len(text.split()) >= LEAST_WORDS]


def _imported(module: str, path: Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = {"bs4": "beautifulsoup4"}.get(module, module.partition(".")[0])
        raise ImportError(f"Reading {path.name} needs `{package}`; run: {install_command('texts')}") from error
