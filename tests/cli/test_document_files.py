"""Texts from folders, PDF, HTML, Parquet and TSV, and near duplicates between two corpora."""

import importlib.util
import json
import re

import pytest

from sae_unlearn.cli import document_files
from sae_unlearn.cli.inputs import read_texts
from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail.fit.near_duplicates import near_duplicates


PAGE = """<html><head><title>t</title><script>var x = "never this text at all";</script></head><body>
<nav><ul><li>Home page of the whole site</li></ul></nav>
<h1>The heading of a page</h1><p>The first   paragraph &amp; its <b>bold</b> words.</p>
<ul><li><p>An item of some length</p></li><li>12</li></ul>
<footer><p>Copyright of the whole site</p></footer></body></html>"""


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}")


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R /Resources {font} >>"
        objects.append(page)
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
    return out + f"{end}<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n".encode()


@needs("pypdf")
def test_the_pages_of_a_pdf(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("The first page has words", "7", "The third page has words too"))
    assert read_texts(str(tmp_path / "a.pdf")) == ["The first page has words", "The third page has words too"]
    (tmp_path / "scan.pdf").write_bytes(pdf("", ""))
    with pytest.raises(UnlearnError, match="OCR"):
        read_texts(str(tmp_path / "scan.pdf"))
    (tmp_path / "none.pdf").write_bytes(b"not a pdf")
    with pytest.raises(UnlearnError, match=r"none\.pdf .*PDF"):
        read_texts(str(tmp_path / "none.pdf"))


@needs("bs4")
def test_the_text_of_a_page_without_menus_and_scripts(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    wanted = ["The heading of a page", "The first paragraph & its bold words.", "An item of some length"]
    assert read_texts(str(tmp_path / "a.html")) == wanted


@needs("pyarrow")
def test_parquet_and_tsv_and_markdown(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["one text", "another"], "n": [1, 2]}), tmp_path / "a.parquet")
    assert read_texts(str(tmp_path / "a.parquet"), "body") == ["one text", "another"]
    with pytest.raises(UnlearnError, match="--text-column"):
        read_texts(str(tmp_path / "a.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(UnlearnError, match=r"bad\.parquet: .*Parquet"):
        read_texts(str(tmp_path / "bad.parquet"))
    (tmp_path / "a.tsv").write_text("text\tn\nwith, a comma\t1\n")
    assert read_texts(str(tmp_path / "a.tsv")) == ["with, a comma"]
    (tmp_path / "a.md").write_text("# Title\n\nA paragraph.\n")
    assert read_texts(str(tmp_path / "a.md")) == ["# Title", "A paragraph."]


def test_a_folder_is_read_file_by_file_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b/2.txt").write_text("second\n\nthird")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first"}))
    (tmp_path / ".hidden/3.txt").write_text("not this")
    (tmp_path / "picture.png").write_bytes(b"nor this")
    assert read_texts(str(tmp_path)) == ["first", "second", "third"]
    assert document_files.files_of(tmp_path / "b") == [tmp_path / "b/2.txt"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/only.jsonl").write_text("{}")
    assert document_files.files_of(tmp_path / "c") is None  # a data set


def test_a_reader_that_is_missing_names_the_extra(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(document_files, "import_module", missing)
    (tmp_path / "a.pdf").write_bytes(pdf("words"))
    with pytest.raises(ImportError, match=r"needs `pypdf`.*texts"):
        read_texts(str(tmp_path / "a.pdf"))


def test_near_duplicates_are_found_in_other_spelling_and_inside_longer_texts():
    words = "the quick brown fox jumps over the lazy dog and runs away into the dark wood"
    forget = ["something else entirely, with words of its own here", words.upper() + "!", "short one"]
    retain = ["nothing of that kind is in here at all, not a word", f"before it {words} and after it", "Short, one."]
    found = near_duplicates(forget, retain)
    assert [(pair.forget, pair.retain, pair.overlap) for pair in found] == [(1, 1, 1.0), (2, 2, 1.0)]
    half = " ".join(words.split()[:9])
    assert near_duplicates([f"{half} but then it goes on in quite another way than before and longer"], [words]) == []
    assert near_duplicates([], retain) == near_duplicates(forget, []) == []


@needs("bs4")
def test_text_outside_of_paragraphs_is_read_too(tmp_path):
    page = (
        "<html><head><title>not this title</title></head><body>text of the body itself<!-- not this comment either -->"
    )
    page += "<div>words of a box <b>in bold</b><p>an inner paragraph of it</p>and after that</div></body></html>"
    (tmp_path / "a.html").write_text(page)
    assert document_files.read_html(tmp_path / "a.html") == [
        "text of the body itself",
        "words of a box in bold and after that",
        "an inner paragraph of it",
    ]
    (tmp_path / "b.html").write_text("<b>Words</b> without any block<p>and a paragraph with words")
    assert document_files.read_html(tmp_path / "b.html") == ["Words without any block", "and a paragraph with words"]


@needs("bs4")
def test_a_page_is_read_in_the_encoding_that_it_declares(tmp_path):
    page = "<html><head><meta charset='{}'></head><p>Zwölf Boxkämpfer jagen Viktor</p></html>"
    for name in ("iso-8859-1", "utf-8", "windows-1252"):
        (tmp_path / "a.html").write_bytes(page.format(name).encode(name))
        assert read_texts(str(tmp_path / "a.html")) == ["Zwölf Boxkämpfer jagen Viktor"]
    (tmp_path / "a.html").write_bytes(b"\xef\xbb\xbf" + page.format("iso-8859-1").encode())
    assert read_texts(str(tmp_path / "a.html")) == ["Zwölf Boxkämpfer jagen Viktor"]
    for content in (page.format("no-such-one").encode(), page.format("").encode("iso-8859-1")):
        (tmp_path / "a.html").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.html: .*UTF-8"):
            read_texts(str(tmp_path / "a.html"))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl", "a.md"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"text\nwith a \0 in it", "got bytes"), ("text\nen français".encode("latin-1"), "UTF-8")],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(str(tmp_path / name))


def test_lines_may_end_as_on_windows_and_a_bad_line_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree")
    assert read_texts(str(tmp_path / "a.txt")) == ["one\ntwo", "three"]
    (tmp_path / "a.csv").write_bytes(b'text,n\r\n"one\r\ntwo",1\r\nthree,2\r\n')
    assert read_texts(str(tmp_path / "a.csv")) == ["one\ntwo", "three"]
    (tmp_path / "a.jsonl").write_bytes(b'"one"\r\n\r\n{"text": \r\n')
    with pytest.raises(ValueError, match="line 3 column"):
        read_texts(str(tmp_path / "a.jsonl"))


def test_a_folder_without_files_is_named(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: ")):
        read_texts(str(tmp_path))


def test_files_that_are_not_read_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("one text of four words")
    (tmp_path / "b.docx").write_text("x")
    (tmp_path / "c.docx").write_text("x")
    (tmp_path / "empty.txt").write_text("\n")
    with (
        pytest.warns(UserWarning, match=r"\.docx \(2\)"),
        pytest.warns(UserWarning, match=r"\b1 files .*: empty"),
    ):
        assert read_texts(str(tmp_path)) == ["one text of four words"]


def test_the_card_of_a_cloned_data_set_is_no_text_of_it(tmp_path):
    (tmp_path / "README.md").write_text(
        "# A data set\n\nThis paragraph says what the data set is about and who made it."
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"text": "a row of the data set itself, of some words"}))
    assert document_files.files_of(tmp_path) is None
    (tmp_path / "data" / "train.jsonl").unlink()
    assert document_files.files_of(tmp_path) == [tmp_path / "README.md"]
