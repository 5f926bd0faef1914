"""`check --url`: what it says of servers that guard, that do not, and that say so falsely. The server is a stand-in."""

import json
import shutil
import socket
import threading

import pytest
import served
from fails_closed import note
from service_stand_in import FIRED, MESSAGE, OTHER, QUIET, TOPIC, Server, entry, save_guardrails, stored

from sae_unlearn.cli.main import main
from sae_unlearn.guardrail.config_parts.layout import config_digest


class AnyRequest(dict):
    """Records of a server that has `record` of whatever request."""

    def __init__(self, record):
        self.record = record

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return {"guard": self.record}

    def __setitem__(self, name, record):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_guardrails(tmp_path_factory.mktemp("service"))


@pytest.fixture
def start(folder):
    """Start a server that has the guardrail of a folder under the name `guard`."""
    servers = []

    def started(name="guard", **more):
        server = Server([entry(folder / name)], **more)
        servers.append(server)
        return server

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def check(folder, capsys):
    def checked(server, name="guard", *more):
        adapter = ["--adapter", str(folder / name), "--name", "guard"]
        code = main(["check", "--url", server if isinstance(server, str) else server.url, *adapter, *more])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return checked


@pytest.mark.parametrize(("action", "said"), [("clamp", "Clamped"), ("record", "Recorded and left as it was")])
def test_it_prints_what_happened_to_a_request_on_the_topic(start, check, action, said):
    server = start(action=action)
    code, out = check(server)
    assert code == 0, out
    assert "Next: " not in out
    assert f"forget 1: {said} (statistic 0.9, threshold 0.5, 9 tokens, after 2)" in out
    assert "retain 1: Not touched" in out
    assert [body["prompt"] for _, body, _ in server.asked] == [TOPIC, OTHER]


def test_a_refusal_must_be_the_answer(start, check):
    server = start("refuse", action="refuse")
    server.answer_ids = [*MESSAGE, 3]
    code, out = check(server, "refuse")
    assert (code, "forget 1: Refused" in out) == (0, True), out
    for wrong in ([1, 2, 3], []):
        server.answer_ids = wrong
        code, out = check(server, "refuse")
        assert (code, "the answer is not the refusal" in out) == (1, True), out
    note("the refusal", out, "check")
    server.answer_ids = None  # a server that gives none
    for text, refused in (("no", True), (" no\n", True), ("n", False), ("", False), ("no, but", False)):
        server.text = text
        code, out = check(server, "refuse")
        assert (code, "forget 1: Refused" in out) == (0 if refused else 1, refused), (text, out)


def test_own_texts_are_sent_as_the_guardrail_was_fitted(start, check, tmp_path, monkeypatch):
    (tmp_path / "topic.txt").write_text("on the topic\n\nmore of the topic")
    (tmp_path / "other.txt").write_text("other")
    texts = ["--forget", str(tmp_path / "topic.txt"), "--retain", str(tmp_path / "other.txt")]
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for name, path in (("guard", "/v1/completions"), ("chat", "/v1/chat/completions")):
        server = start(name)
        server.per_request = True
        code, out = check(server, name, *texts)
        assert code == 0, out
        assert "fired on 2 of 2 requests on the topic" in out
        assert {(asked, key) for asked, _, key in server.asked} == {(path, "Bearer secret")}
        assert all(body["vllm_xargs"] == {"sae_guardrail": "guard"} for _, body, _ in server.asked)


def test_a_topic_on_which_it_does_not_fire_is_a_problem(start, check, tmp_path):
    (tmp_path / "topic.txt").write_text("something else")
    code, out = check(start(), "guard", "--forget", str(tmp_path / "topic.txt"))
    note("text on the topic", out, "check")
    assert code == 1
    assert "PROBLEM  on the topic: The guardrail fired on 0 of 1" in out
    assert "Next: sae-unlearn tune --adapter" in out


# ------------------------------------------------------------------------------------------- servers that do not guard


def test_a_server_without_the_plugin(start, check):
    server = start()
    server.guardrails = None
    code, out = check(server)
    note("the routes of the plugin", out, "check")
    assert code == 1
    assert "it is not guarded" in out
    assert "Next: sae-unlearn serve" in out


def test_a_server_with_another_guardrail(start, check):
    for part, guardrails, said in (
        ("the guardrail", [], "has no guardrail guard"),
        ("the guardrail's weights", [{"name": "guard", "weights_sha256": "0"}], "weights_sha256 differ"),
    ):
        server = start()
        server.guardrails = guardrails
        code, out = check(server)
        note(part, out, "check")
        assert (code, said in out) == (1, True), out


def test_a_folder_without_a_seal_cannot_be_compared(start, check, folder):
    served.save_guardrail(folder, folder / "gemma3", "unsealed", calibration=stored(folder / "guard")["calibration"])
    code, out = check(start(), "unsealed")
    assert code == 0
    assert "WARNING  guardrail: The server has a guardrail guard. Their seals were not compared" in out


def test_a_server_that_does_not_judge(start, check):
    server = start()
    server.keeps_records = False
    code, out = check(server)
    note("records", out, "check")
    assert code == 1
    assert "Not judged" in out
    assert "Next: sae-unlearn check --model" in out


def test_a_gate_that_does_something_else_than_at_the_fit(start, check, monkeypatch):
    monkeypatch.setitem(QUIET, "fired", True)
    monkeypatch.setitem(QUIET, "at_token", 1)
    code, out = check(start())
    note("a gate that does what it did at the fit", out, "check")
    assert code == 1
    assert "At the fit the gate did not fire on this row" in out


def test_a_gate_that_fires_on_the_answer_alone_did_what_it_did_at_the_fit(start, check, monkeypatch):
    monkeypatch.setitem(QUIET, "fired", True)
    monkeypatch.setitem(QUIET, "at_token", len(OTHER) + 1)
    code, out = check(start())
    assert code == 0, out
    assert "retain 1: Clamped" in out


def test_a_server_that_names_its_model_is_not_asked_for_a_list(start, check):
    server = start()
    server.broken, server.model = True, {"model": "served"}
    assert check(server)[0] == 0
    assert {body["model"] for _, body, _ in server.asked} == {"served"}


def test_no_server_and_no_model_server(start, check):
    server = start()
    server.broken = True
    assert check(server)[0] == 1
    code, out = check("http://127.0.0.1:1")
    note("the server", out, "check")
    assert code == 1
    code, out = check("localhost:8000")
    note("http:// in the address", out, "check")
    assert (code, "expected an address like http" in out) == (2, True)


@pytest.mark.parametrize(
    ("at", "last"),
    [
        ("/v1/models", "server: http"),
        ("/sae_guardrail/guardrails", "server: http"),
        ("/v1/completions", "server: It was lost at forget 1: http"),
        ("/sae_guardrail/records", "server: It was lost at forget 1: http"),
    ],
)
def test_a_server_that_ends_during_the_check_is_one_problem(start, check, at, last):
    server = start()
    server.ends_at = at
    code, out = check(server)
    assert code == 1
    assert out.count("PROBLEM") == 1, out
    note(f"the server, from {at} on", out.replace(server.url, "http://localhost:8000"), "check")
    assert f"PROBLEM  {last}" in out
    assert "IncompleteRead" in out
    assert len(server.asked) <= 1  # the other requests are not sent


def test_an_address_that_is_none_and_a_server_that_does_not_speak_http(check):
    code, out = check("http://localhost:eight")
    assert (code, out.count("PROBLEM")) == (1, 1), out
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            one, _ = other.accept()
            one.recv(100)
            one.sendall(b"SSH-2.0\r\n")
            one.close()

        threading.Thread(target=answer, daemon=True).start()
        code, out = check(f"http://127.0.0.1:{other.getsockname()[1]}")
    assert (code, out.count("PROBLEM")) == (1, 1), out
    assert "BadStatusLine" in out


@pytest.mark.parametrize("record", [[], "fired", 1, {"tokens": 9, "action": "none"}, {"tokens": 0}])
def test_records_that_are_none(start, check, record):
    server = start()
    server.records = AnyRequest(record)
    code, out = check(server)
    assert code == 1
    assert ("Not judged" in out) or ("The server names an unknown action: 'none'" in out), out


def test_a_record_without_numbers_is_shown_as_such(start, check, monkeypatch):
    monkeypatch.setitem(FIRED, "threshold", None)
    monkeypatch.setitem(FIRED, "statistic", None)
    code, out = check(start())
    assert code == 0, out
    assert "Clamped (statistic not finite, threshold not finite, 9 tokens" in out


@pytest.mark.parametrize("listed", [5, {"name": "guard"}, ["guard"], None])
def test_a_list_of_guardrails_that_is_none(start, check, listed):
    server = start()
    server.guardrails = listed if listed is not None else [None]
    code, out = check(server)
    assert (code, "has no guardrail guard" in out) == (1, True), out


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_folder_is_not_compared(start, check, folder, file):
    damaged = folder / f"damaged {file}"
    shutil.copytree(folder / "guard", damaged)
    if file.endswith("json"):
        seal = {"config_sha256": config_digest(stored(damaged))}
        (damaged / file).write_text(json.dumps(stored(damaged) | seal | {"threshold": 0.7}))
    else:
        data = (damaged / file).read_bytes()
        (damaged / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out = check(start(), damaged.name)
    note(f"{file} as it was saved", out, "check")
    assert (code, f"{file} changed after it was saved" in out) == (2, True), out


def test_a_server_that_takes_no_token_ids_needs_text(start, check, tmp_path):
    server = start()
    server.engine = "transformers"
    code, out = check(server)
    note("--forget, with transformers' server", out, "check")
    assert (code, "Pass --forget" in out) == (2, True), out
    (tmp_path / "topic.txt").write_text("on the topic")
    code, out = check(server, "guard", "--forget", str(tmp_path / "topic.txt"))
    assert (code, "forget 1: Clamped" in out) == (0, True), out


def test_bad_input(start, check, folder, capsys):
    code, out = check(start("chat"), "chat")
    note("stored rows, and --forget", out, "check")
    assert (code, "Pass --forget" in out) == (2, True), out
    assert main(["check", "--adapter", str(folder / "guard")]) == 2
    assert main(["check", "m", "--url", "http://x", "--adapter", "a"]) == 2
    assert "expected one of them" in capsys.readouterr().err
