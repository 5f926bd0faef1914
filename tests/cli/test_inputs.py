"""Texts that are read from files."""

import json

import pytest

from sae_unlearn.cli.inputs import read_texts
from sae_unlearn.errors import UnlearnError


def test_texts_are_read_from_every_kind_of_file(tmp_path):
    expected = ["one\ntwo", "three"]
    (tmp_path / "a.txt").write_text("one\r\ntwo\r\n\r\n\r\n\r\nthree\n", newline="")
    (tmp_path / "a.json").write_text(json.dumps([expected[0], {"text": "three"}]))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(x) for x in expected) + "\n\n")
    (tmp_path / "a.csv").write_text('text\n"one\ntwo"\nthree\n')
    for name in ("a.txt", "a.json", "a.jsonl", "a.csv"):
        assert list(read_texts(str(tmp_path / name))) == expected, name


def test_texts_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('["one", 3]')
    with pytest.raises(UnlearnError, match=r"Row 2 .*a\.json .*int"):
        read_texts(str(tmp_path / "a.json"))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnlearnError, match=r"a\.txt: .*UTF-8"):
        read_texts(str(tmp_path / "a.txt"))
    (tmp_path / "a.csv").write_text("text\n" + "long " * 40_000)
    with pytest.raises(UnlearnError, match=r"a\.csv: .*CSV.*\.jsonl"):
        read_texts(str(tmp_path / "a.csv"))


def test_texts_are_read_as_editors_and_other_programs_write_them(tmp_path):
    texts = ["one\u2028still one", "two\x85still two"]  # line ends to Python, and not to JSON
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in texts), encoding="utf-8-sig")
    assert list(read_texts(str(tmp_path / "a.jsonl"))) == texts
    (tmp_path / "a.json").write_text(json.dumps(["one"]), encoding="utf-8-sig")
    (tmp_path / "a.csv").write_text("text,other\none,1\n", encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8-sig")
    for name in ("a.json", "a.csv", "a.txt"):
        assert list(read_texts(str(tmp_path / name))) == ["one"], name
    (tmp_path / "b.txt").write_text("one\n \t\ntwo\n\n\n\nthree")  # a line of blanks is a blank line
    assert list(read_texts(str(tmp_path / "b.txt"))) == ["one", "two", "three"]
