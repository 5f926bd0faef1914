"""`sae-unlearn serve` without vLLM: the command that it makes, and what it refuses before a model is loaded."""

import argparse
import json
import socket
import sys
from importlib.metadata import EntryPoint
from itertools import pairwise

import pytest
import served
import torch
from fails_closed import note, stopped
from hub_requests import OWNER

from sae_unlearn import GuardrailError
from sae_unlearn.cli import serve
from sae_unlearn.cli.main import build_parser, main
from sae_unlearn.engines.vllm import command
from sae_unlearn.engines.vllm.settings import Settings, chosen_names
from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


SETTINGS = {"paths": ["/a/guard"]}
CHECK_PORT = serve.check_port


def options(words):
    """The value that follows each flag of a command."""
    return {flag: value for flag, value in pairwise(words) if flag.startswith("--")}


def test_the_command_has_the_settings_and_the_flag_that_fails_closed():
    words = command.serve_command("M", SETTINGS, ["--max-model-len", "64"], "0.0.0.0", 8001)
    assert words[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    found = options(words)
    assert json.loads(found["--additional-config"]) == {"sae_guardrail": SETTINGS}
    assert found["--worker-extension-cls"] == "sae_unlearn.engines.vllm.extension.GuardrailWorker"
    assert (found["--model"], found["--host"], found["--port"]) == ("M", "0.0.0.0", "8001")
    assert found["--max-model-len"] == "64"


@pytest.mark.parametrize("given", [["--additional-config", '{"x": 1}'], ['--additional-config={"x": 1}']])
def test_settings_of_other_plugins_are_kept(given):
    words = command.serve_command("M", SETTINGS, ["--seed", "1", *given, "--dtype", "float32"])
    assert words.count("--additional-config") == 1
    found = options(words)
    assert json.loads(found["--additional-config"]) == {"x": 1, "sae_guardrail": SETTINGS}
    assert (found["--seed"], found["--dtype"]) == ("1", "float32")


@pytest.mark.parametrize(
    "given",
    [
        ["--worker-extension-cls", "other.Class"],
        ["--model=other"],
        ["--additional-config", '{"sae_guardrail": {}}'],
        ["--additional-config", "[1]"],
        ["--additional-config", "{"],
    ],
)
def test_options_that_would_leave_the_server_unguarded_are_refused(given):
    with stopped(f"with -- {' '.join(given)}", GuardrailError, given[0].partition("=")[0], "serve"):
        command.serve_command("M", SETTINGS, given)


@pytest.fixture
def plugins(monkeypatch):
    """Entry points of this package and another one; the test may remove them."""
    found = {
        "vllm.general_plugins": ["sae_unlearn", "lora_resolver"],
        "vllm.endpoint_plugins": ["sae_unlearn", "foreign_routes"],
    }

    def entry_points(group, name=None):
        return [EntryPoint(each, "m:f", group) for each in found.get(group, []) if name in (None, each)]

    monkeypatch.setattr(command, "entry_points", entry_points)
    return found


def test_other_plugins_stay_and_no_foreign_route_is_added(plugins):
    assert command.serve_environment({}, cuda=False) == {"VLLM_PLUGINS": "lora_resolver,sae_unlearn"}
    assert command.serve_environment({"VLLM_PLUGINS": "x"}, cuda=False)["VLLM_PLUGINS"] == "sae_unlearn,x"
    assert command.serve_environment({}, cuda=True)["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert command.serve_environment({"VLLM_USE_V2_MODEL_RUNNER": "1"}, cuda=True)["VLLM_USE_V2_MODEL_RUNNER"] == "1"


@pytest.mark.parametrize("group", ["vllm.general_plugins", "vllm.endpoint_plugins"])
def test_a_package_that_is_not_installed_is_refused(plugins, group):
    plugins[group].remove("sae_unlearn")
    with stopped(f"the entry point of {group}", GuardrailNotReady, group, "serve"):
        command.serve_environment({}, cuda=False)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, ("a", "b")),
        ("", ()),
        (" b , a", ("a", "b")),
        (["b"], ("b",)),
        (",", None),
        ("a,", None),
        ("a,c", None),
        ([""], None),
        (1, None),
        (["a", ["b"]], None),
    ],
)
def test_a_request_names_its_guardrails_or_is_refused(asked, found):
    request = argparse.Namespace(extra_args={"sae_guardrail": asked})
    settings = Settings(["/x/a", "/x/b"], per_request=True)
    if found is None:
        with pytest.raises(GuardrailError, match=r"^sae_guardrail=.*\['a', 'b'\]"):
            chosen_names(request, settings)
    else:
        assert chosen_names(request, settings) == found
        request.extra_args = {"sae_guardrails": "a"}  # another entry, of which the guardrail knows nothing
        assert chosen_names(request, settings) == ("a", "b")


# ------------------------------------------------------------------------------------------------- the command line


def test_words_after_two_dashes_go_to_the_engine():
    args = build_parser().parse_args(["serve", "M", "--adapter", "A", "--", "--adapter", "x", "--", "y"])
    assert (args.model, args.adapter) == ("M", "A")
    assert args.engine_options == ["--adapter", "x", "--", "y"]
    assert build_parser().parse_args(["serve", "M", "--adapter", "A"]).engine_options == []


def test_a_file_of_options_comes_before_those_of_the_engine(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(serve, "run", lambda args: seen.append(args) or 0)
    (tmp_path / "o.json").write_text('{"port": 8001}')
    assert main(["serve", "M", "--adapter", "A", "--config", str(tmp_path / "o.json"), "--", "--port", "1"]) == 0
    assert (seen[0].port, seen[0].engine_options) == (8001, ["--port", "1"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model, and guardrails of both scopes."""
    folder = tmp_path_factory.mktemp("serve")
    model = served.save_model(folder, "gemma3")
    served.save_guardrail(folder, model)
    served.save_guardrail(folder, model, "whole", gate_scope="sequence")
    return folder


@pytest.fixture
def started(monkeypatch, plugins):
    """What would be started, with vLLM as if it were installed."""
    found = []
    monkeypatch.setattr(serve, "find_spec", lambda name: argparse)
    monkeypatch.setattr(command, "replace_process", lambda words, environment: found.append((words, environment)))
    monkeypatch.setattr(serve, "check_port", lambda args: None)  # whatever else runs on this machine
    return found


def run(folder, name, *more):
    return main(["serve", str(folder / "gemma3"), "--adapter", str(folder / name), *more])


def test_a_guardrail_is_served_by_its_absolute_path(folder, started, monkeypatch):
    monkeypatch.chdir(folder)
    log = folder / "log.jsonl"
    assert main(["serve", "gemma3", "--adapter", "guard", "--per-request", "--log", "log.jsonl"]) == 0
    words, environment = started[0]
    settings = json.loads(options(words)["--additional-config"])["sae_guardrail"]
    assert settings == {"paths": [str(folder / "guard")], "per_request": True, "log": str(log)}
    assert "sae_unlearn" in environment["VLLM_PLUGINS"]


def test_on_a_gpu_no_graphs_are_captured(folder, started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for more in ([], ["--", "--enforce-eager"]):
        assert run(folder, "guard", *more) == 0
        assert started.pop()[0].count("--enforce-eager") == 1


def test_sequence_scope_says_what_to_do(folder, started, capsys):
    assert run(folder, "whole") == 2
    said = capsys.readouterr().err
    note('gate_scope="prefix"', said, "serve")
    assert "--for-serving" in said
    assert "--no-enable-prefix-caching --no-enable-chunked-prefill" in said
    assert run(folder, "whole", "--", "--no-enable-prefix-caching", "--no-enable-chunked-prefill") == 0


@pytest.mark.parametrize(
    ("part", "more", "said"),
    [
        ("a folder for the log", ["--log", "nowhere/log"], "--log='nowhere/log' cannot be written"),
        ("with --device cpu", ["--device", "cpu"], "--device"),
        ("the subfolder", ["--adapter-subfolder", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(folder, started, capsys, part, more, said):
    assert run(folder, "guard", *more) == 2
    error = capsys.readouterr().err
    note(part, error, "serve")
    assert said in error
    assert not started


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_port_that_is_in_use_is_refused_before_a_model_is_loaded(folder, started, capsys, monkeypatch, engine):
    started_at = ["--engine", engine, "--port"]
    monkeypatch.setattr(serve, "check_port", CHECK_PORT)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert run(folder, "guard", *started_at, port) == 2
        said = capsys.readouterr().err
        note("a free port", said.replace(port, "8000"), "serve")
        assert f"--port {port}: the server cannot listen there" in said
        assert not started
        assert run(folder, "guard", "--engine", engine, "--", "--port", port) == 0  # the engine says so
    assert run(folder, "guard", *started_at, port) == 0
    assert run(folder, "guard", *started_at, "99999") == 2


def test_a_damaged_guardrail_is_not_served(folder, started, capsys):
    damaged = served.save_guardrail(folder, folder / "gemma3", "damaged")
    stored = damaged / "adapter_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"weights_sha256": "0" * 64}))
    assert run(folder, "damaged") == 2
    said = capsys.readouterr().err
    note("weights that were changed after saving", said, "serve")
    assert "after it was saved" in said
    assert not started


def test_without_an_engine_the_command_says_so(folder, monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    for part, more, said in (
        ("an engine", [], "no engine is installed"),
        ("vLLM, with --engine vllm", ["--engine", "vllm"], "vllm is not installed"),
    ):
        assert run(folder, "guard", *more) == 2
        error = capsys.readouterr().err
        note(part, error, "serve")
        assert said in error


def test_without_vllm_transformers_serves(folder, started, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "vllm" else argparse)
    assert run(folder, "guard", "--port", "8001", "--dtype", "float32", "--", "--cb-block-size", "16") == 0
    words, _ = started[0]
    assert words[1:4] == ["-m", "sae_unlearn.engines.transformers_serve", str(folder / "gemma3")]
    found = options(words)
    assert (found["--guardrail"], found["--port"]) == (str(folder / "guard"), "8001")
    assert words[-2:] == ["--cb-block-size", "16"]


def test_what_the_server_of_transformers_has_not_is_refused(folder, started, capsys):
    for name, more, said in (
        ("guard", ["--per-request"], "--per-request"),
        ("guard", ["--model-revision", "x"], "--model-revision"),
        ("whole", [], "--for-serving"),
    ):
        assert run(folder, name, "--engine", "transformers", *more) == 2
        error = capsys.readouterr().err
        note(" ".join(["with --engine transformers", *more]) + (f", {name}" if name == "whole" else ""), error, "serve")
        assert said in error
    assert not started
    assert run(folder, "whole", "--engine", "transformers", "--", "--no-continuous-batching") == 0


def test_a_guardrail_of_the_hub_is_served_from_a_copy_with_its_name(folder, started, stand_in, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    monkeypatch.setenv("SAE_UNLEARN_CACHE", str(tmp_path / "cache"))
    repository, api = "me/forget-topic", HfApi(token=OWNER)
    api.create_repo(repository)
    api.upload_folder(repo_id=repository, folder_path=folder / "guard", ignore_patterns="*.md")
    assert main(["serve", str(folder / "gemma3"), "--adapter", repository]) == 0
    (path,) = json.loads(options(started[0][0])["--additional-config"])["sae_guardrail"]["paths"]
    assert path.endswith("/forget-topic")
    assert path.startswith(str(tmp_path / "cache"))
    assert GuardrailFolder.open(path).artefact().config.layer == served.LAYER
