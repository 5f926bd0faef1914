"""Links to the web: their shape, which needs no network, and what `.ci/links` makes of answers."""

import http.server
import importlib.util
import re
import threading
import urllib.error
from importlib.machinery import SourceFileLoader
from socket import EAI_AGAIN, EAI_NONAME, gaierror

import pytest
from pages import CARDS, PAGES, ROOT


loader = SourceFileLoader("ci_links", str(ROOT / ".ci" / "links"))
ci_links = importlib.util.module_from_spec(importlib.util.spec_from_loader("ci_links", loader))
loader.exec_module(ci_links)
LINKS = ci_links.links()
TARGET = re.compile(r"\[([^\]]*)\]\((https?:[^)]*)\)")


def test_the_pages_are_those_whose_other_links_are_checked():
    assert set(ci_links.pages()) == {*PAGES, *CARDS}
    assert len(LINKS) > 10


def test_links_are_https_and_whole():
    for url, pages in LINKS.items():
        assert re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[\w./%~@+-]*)?(#[\w.-]+)?", url), f"{url} in {pages}"
    for page in ci_links.pages():
        for _, target in TARGET.findall(page.read_text(encoding="utf-8")):
            assert target in LINKS, f"{target} in {page.relative_to(ROOT)}"


def test_papers_are_linked_by_an_id_that_there_can_be_and_that_the_text_names():
    for url in (url for url in LINKS if "arxiv" in url.lower()):
        found = re.fullmatch(r"https://arxiv\.org/abs/(\d\d)(\d\d)\.\d{5}", url)
        assert found, url
        assert int(found[1]) >= 15, url  # five digits since 2015
        assert 1 <= int(found[2]) <= 12, url
    for page in ci_links.pages():
        for text, target in TARGET.findall(page.read_text(encoding="utf-8")):
            named = re.search(r"arXiv (\S+)", text)
            assert not named or target == f"https://arxiv.org/abs/{named[1]}", f"{text} in {page.relative_to(ROOT)}"


def test_a_page_is_spelt_one_way():
    spelt: dict[str, str] = {}
    for url in LINKS:
        plain = re.sub(r"^https?://(www\.)?", "", url.partition("#")[0]).removesuffix("/").removesuffix(".git").lower()
        assert spelt.setdefault(plain, url.partition("#")[0]) == url.partition("#")[0]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def outcome(monkeypatch, capsys, urls):
    """`(exit status, what was printed)` for a page that links to `urls`."""
    monkeypatch.setattr(ci_links, "links", lambda: {url: ["page.md"] for url in urls})
    return ci_links.main(), capsys.readouterr().out


@pytest.mark.parametrize("status", [404, 410])
def test_a_page_that_is_gone_fails(server, monkeypatch, capsys, status):
    code, said = outcome(monkeypatch, capsys, [f"{server}/200", f"{server}/{status}"])
    assert code == 1
    assert f"{server}/{status}: gone: {status} (page.md)" in said
    assert "2 links: 1 are there, 1 gone." in said


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_trouble_of_the_server_is_told_and_passes(server, monkeypatch, capsys, status):
    code, said = outcome(monkeypatch, capsys, [f"{server}/200", f"{server}/{status}"])
    assert code == 0
    assert f"{server}/{status}: answered with {status}" in said


def opening(error):
    def opened(request, timeout):
        raise urllib.error.URLError(error)

    return opened


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (gaierror(EAI_NONAME, "Name or service not known"), "unknown host"),
        (gaierror(EAI_AGAIN, "Temporary failure"), "not reached: "),
        (ConnectionRefusedError("refused"), "not reached: refused"),
        (TimeoutError("timed out"), "not reached: timed out"),
    ],
)
def test_what_a_failure_is_called(monkeypatch, error, expected):
    monkeypatch.setattr(ci_links.urllib.request, "urlopen", opening(error))
    assert ci_links.answer("https://example.org/", 1).startswith(expected)


@pytest.mark.parametrize(("said", "code"), [("unknown host", 1), ("not reached: refused", 0)])
def test_an_unknown_host_fails_where_another_page_is_there(monkeypatch, capsys, said, code):
    found = {"https://a.org/": "there", "https://b.org/": said}
    monkeypatch.setattr(ci_links, "answers", lambda urls: found)
    assert outcome(monkeypatch, capsys, list(found))[0] == code


def test_without_a_network_nothing_fails_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(ci_links, "answers", lambda urls: dict.fromkeys(urls, "unknown host"))
    code, said = outcome(monkeypatch, capsys, ["https://a.org/", "https://b.org/"])
    assert code == 0
    assert said == "No network: of 2 links not one could be opened, and none is checked.\n"


def test_what_takes_too_long_is_given_up(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(ci_links, "answer", lambda url, seconds: release.wait(30) or "there")
    try:
        assert ci_links.answers(["https://a.org/"], seconds=0.05) == {"https://a.org/": "no answer in time"}
    finally:
        release.set()
