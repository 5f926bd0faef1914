"""`--retain default` against a stand-in of the Hub: what is downloaded, which paragraphs, and without the Hub."""

import importlib.util

import pytest
from hub_repositories import Repository
from hub_stand_in import HubStandIn, point_at

from sae_unlearn.cli import default_texts as module
from sae_unlearn.cli.data_sets import texts_in
from sae_unlearn.cli.default_texts import default_texts, repaired
from sae_unlearn.errors import UnlearnError


pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
LONG = " ".join(f"word{i}" for i in range(60))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = ["", " = A heading = \n", "too short"] + [f" {i} {LONG} , and so on . \n" for i in range(1000)]
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "rows.parquet")
    found = HubStandIn()
    found.repositories[module.REPOSITORY] = Repository(module.REPOSITORY)
    files = {module.FILE: (tmp_path / "rows.parquet").read_bytes()}
    found.repositories[module.REPOSITORY].commit("main", "all", files)
    point_at(found, monkeypatch, tmp_path / "cache")
    yield found
    found.stop()


def test_paragraphs_are_taken_from_the_whole_corpus_and_repaired(hub):
    found = texts_in(["default"])
    assert len(found) == module.PARAGRAPHS
    assert found[0] == f"0 {LONG}, and so on."
    assert int(found[-1].split()[0]) == 998
    assert any(path.startswith("/datasets/Salesforce/wikitext/resolve/main/") for _, path in hub.requests)


def test_the_corpus_is_downloaded_once(hub):
    assert default_texts() == default_texts()
    assert [path.endswith(".parquet") for method, path in hub.requests if method == "GET"].count(True) == 1


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    (tmp_path / "default/a.txt").write_text("one text\n\nand a second one")
    assert texts_in(["default"]) == ["one text", "and a second one"]


def test_without_the_hub_it_says_what_to_pass(hub, monkeypatch):
    hub.stop()
    with pytest.raises(UnlearnError, match=r"^--retain default: "):
        default_texts()


def test_spaces_around_punctuation_are_removed():
    raw = "In 1 @,@ 234 cases ( or so ) it \" is said \" that the king 's men didn 't run ."
    assert repaired(raw + " ") == "In 1,234 cases (or so) it \"is said\" that the king's men didn 't run."
