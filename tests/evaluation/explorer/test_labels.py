"""Labels of features: from a stand-in of Neuronpedia's exports, from files, on the page and on the command line."""

import gzip
import http.server
import json
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from tiny_topic import save_adapters

from sae_unlearn.cli.main import main
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.explorer import labels as module
from sae_unlearn.evaluation.explorer.labels import feature_labels
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


ID = "gemma-2-2b/3-gemmascope-res-16k"
PREFIX = f"v1/{ID}/explanations/"


def packed(rows):
    return gzip.compress("\n".join(json.dumps(row) for row in rows).encode(), mtime=0)


class Exports:
    """A server that lists and gives files as the bucket of the exports does, two names a page."""

    def __init__(self, files):
        self.files, self.asked = files, []
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                stand_in.asked.append(self.path)
                data = stand_in.answer(urlsplit(self.path))
                self.send_response(404 if data is None else 200)
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, url):
        if url.path != "/":
            return self.files.get(url.path[1:])
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        names = sorted(name for name in self.files if name.startswith(query["prefix"]))
        start = int(query.get("continuation-token", "0"))
        found = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in names[start : start + 2])
        more = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if start + 2 < len(names) else ""
        return f"<ListBucketResult>{found}{more}</ListBucketResult>".encode()


@pytest.fixture
def exports(monkeypatch):
    files = {
        f"{PREFIX}batch-0.jsonl.gz": packed([{"index": "7", "description": "words of  food"}]),
        f"{PREFIX}batch-1.jsonl.gz": packed([{"index": 3, "description": "<b>bold</b>\x1b[31m"}]),
        f"{PREFIX}batch-2.jsonl.gz": packed(
            [{"index": "7", "description": "a second one"}, {"index": 9, "description": None}, {"index": 11}][:2]
        ),
        f"{PREFIX}readme.txt": b"no labels",
        "v1/gemma-2-2b/3-gemmascope-res-65k/explanations/batch-0.jsonl.gz": packed([{"index": 9, "description": "x"}]),
    }
    found = Exports(files)
    monkeypatch.setattr(module, "EXPORTS", found.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield found
    found.server.shutdown()


def test_labels_come_from_all_batches_of_this_sae(exports):
    found = feature_labels("neuronpedia", [7, 3, 9], ID)
    assert found[7] == "words of food"
    assert set(found) == {7, 3}
    assert "\x1b" not in found[3]
    assert not any("65k" in path for path in exports.asked)


def test_reading_ends_once_all_are_known(exports):
    feature_labels("neuronpedia", [7], ID)
    assert [path for path in exports.asked if path.endswith(".gz")] == [f"/{PREFIX}batch-0.jsonl.gz"]


def test_files_and_folders_of_an_export_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"index": 1, "description": "one"}\n\n')
    (tmp_path / "b.jsonl.gz").write_bytes(packed([{"index": 2, "description": "two"}]))
    assert feature_labels(str(tmp_path), [1, 2, 3]) == {1: "one", 2: "two"}
    assert feature_labels(str(tmp_path / "a.jsonl"), [1, 2]) == {1: "one"}


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.jsonl", b"not json", "Line 1 of a.jsonl"),
        ("a.jsonl", b'{"description": "x"}', "Line 1 of a.jsonl"),
        ("a.jsonl.gz", b"not gzip", "not a gzip file"),
        ("a.jsonl.gz", packed([{"index": 1, "description": "x" * 500}])[:-12], "cut off"),
        ("a.csv", b"1,x", "expected .jsonl"),
    ],
)
def test_a_file_that_is_no_export_is_refused(tmp_path, name, data, match):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnlearnError, match=match):
        feature_labels(str(tmp_path / name), [1])


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 10_000))
    with pytest.raises(UnlearnError, match="unpacked"):
        feature_labels(str(tmp_path / "a.jsonl.gz"), [1])


def test_what_cannot_be_had_is_an_error_with_a_way_out(exports, tmp_path):
    with pytest.raises(UnlearnError, match="without"):
        feature_labels("neuronpedia", [1])
    with pytest.raises(UnlearnError, match=r"^labels='neuronpedia': .*gemma-2-2b/9-none"):
        feature_labels("neuronpedia", [1], "gemma-2-2b/9-none")
    with pytest.raises(FileNotFoundError, match=r"^labels=.*none\.jsonl"):
        feature_labels(str(tmp_path / "none.jsonl"), [1])
    exports.server.shutdown()
    exports.server.server_close()
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:"):
        feature_labels("neuronpedia", [1], ID)


@pytest.mark.slow
def test_show_lists_labels_and_puts_them_on_the_page(tmp_path, capsys):
    save_adapters(tmp_path)
    ids = GuardrailFolder.open(tmp_path / "guardrail").config().feature_ids
    rows = [{"index": str(i), "description": f"label <{i}>"} for i in ids[:2]]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["show", str(tmp_path / "guardrail"), "--html", str(tmp_path / "page.html")]
    assert main([*given, "--labels", str(tmp_path / "labels.jsonl")]) == 0
    assert f"{ids[0]}   label <{ids[0]}>" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert f"label &lt;{ids[0]}&gt;" in page
    assert main(given) == 0
    assert "label &lt;" not in (tmp_path / "page.html").read_text()
    assert main(["show", str(tmp_path / "guardrail"), "--labels", "neuronpedia"]) == 2
