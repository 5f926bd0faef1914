"""Rows of files, and splits of saved datasets."""

import json

import pytest

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.rows import load_split, rows_of_file


ROWS = [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "list.json": json.dumps(ROWS, indent=1),
        "lines.json": "\n".join(map(json.dumps, ROWS)),
        "lines.jsonl": "\n\n".join(map(json.dumps, ROWS)) + "\n",
        "table.csv": "text\none\ntwo\n",
        "table.TSV": "text\none\ntwo\n",
        "marked.json": "\ufeff" + json.dumps(ROWS),
    }.items(),
)
def test_rows_are_read_from_every_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert rows_of_file(tmp_path / name) == ROWS


def test_one_object_is_one_row(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=1))
    assert rows_of_file(tmp_path / "one.json") == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"text": "one"},', "JSON"),
        ("a.json", b'{"text": "one"}\n{"text"', "JSON"),
        ("a.jsonl", b'[\n"one"\n]', "JSON"),
        ("a.csv", b"text\n" + b"long " * 40_000, r"CSV.*\.jsonl"),
        ("a.tsv", b"text\n\xff\xfe", "UTF-8"),
        ("a.parquet", b"nothing", "Parquet"),
    ],
)
def test_what_holds_no_rows_is_refused_by_its_name(tmp_path, name, content, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason='needs the extra: pip install ".[texts]"')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnlearnError, match=rf"/{name}: .*{said}"):
        rows_of_file(tmp_path / name)


def test_a_split_of_a_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets", reason='needs the extra: pip install ".[eval]"')
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "all")
    data.save_to_disk(tmp_path / "one")
    assert list(load_split(str(tmp_path / "all"))) == list(load_split(str(tmp_path / "one"))) == ROWS
    assert list(load_split(str(tmp_path / "all"), split="test")) == ROWS[1:]
    with pytest.raises(UnlearnError, match=r"^split='dev': .*train, test"):
        load_split(str(tmp_path / "all"), split="dev")
