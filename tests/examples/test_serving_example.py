"""The example of a service: its files belong together, and its command lines run, against stand-ins."""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from service_stand_in import Server, entry, save_guardrails

from sae_unlearn.cli import serve
from sae_unlearn.cli.main import build_parser, main
from sae_unlearn.engines import prometheus
from sae_unlearn.engines.vllm import command


FOLDER = Path(__file__).resolve().parents[2] / "examples" / "serving"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = FOLDER / "Dockerfile"
KEYS = {"build", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "ports", "volumes"}
"""Keys of a service in the Compose specification that the example uses."""


def readme_commands():
    """The command lines of the README that are of this package, without their first word."""
    found = re.findall(r"^ *sae-unlearn (.*?[^\\])\n", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line.replace("\\\n", " ").split() for line in found]


def interpolated(text, **values):
    """A value of the compose file, with `${NAME}` and `${NAME:-default}` replaced as docker compose does."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda found: values.get(found[1], found[2]), text)


# -------------------------------------------------------------------------------------- the files belong together


def test_the_compose_file_is_whole():
    assert set(COMPOSE) == {"services", "volumes"}
    for name, service in SERVICES.items():
        assert set(service) <= KEYS, name
        assert ("build" in service) != ("image" in service)
        if "build" in service:
            assert (FOLDER / service["build"]["context"]).resolve() / service["build"]["dockerfile"] == DOCKERFILE
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other]
        for volume in service.get("volumes", []):
            source, target, *mode = interpolated(volume).split(":")
            assert target.startswith("/")
            assert mode in ([], ["ro"])
            assert source in COMPOSE["volumes"] or source == "./forget-topic" or (FOLDER / source).is_file(), source
        for port in service.get("ports", []):
            assert re.fullmatch(r"(127\.0\.0\.1:)?\d+:\d+", port)
    named = {match[0] for match in re.findall(r"\$\{(\w+)(:-)?", (FOLDER / "compose.yaml").read_text())}
    assert all(f"{name}=" in (FOLDER / "README.md").read_text() for name in named)


def test_the_image_has_what_the_package_is_built_from_and_needs():
    text = DOCKERFILE.read_text()
    root, project = FOLDER.parents[1], tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert all((root / name).exists() for name in copied)
    built_from = {"pyproject.toml", "sae_unlearn", project["project"]["readme"], *project["project"]["license-files"]}
    assert built_from <= {*copied}
    of_vllm = {"torch", "transformers", "safetensors", "huggingface_hub", "jinja2"}
    for needed in project["project"]["dependencies"]:
        assert re.match(r"\w+", needed)[0] in of_vllm or f'"{needed}"' in text, needed


def test_prometheus_reads_the_server():
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert port in interpolated(" ".join(SERVICES[host]["command"])).split()
    assert [f"./{rules}" for rules in config["rule_files"]] == [
        volume.split(":")[0] for volume in SERVICES["prometheus"]["volumes"] if "alerts" in volume
    ]


def test_its_alerts_are_on_metrics_that_are_there():
    rules = (FOLDER / "alerts.yml").read_text()
    yaml.safe_load(rules)
    named = set(re.findall(r"sae_guardrail:\w+", rules))
    assert named
    assert named <= set(re.findall(r"sae_guardrail:\w+", prometheus.__doc__))


# ------------------------------------------------------------------------------------------- its command lines run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Guardrails with stored rows, `adapter` and `forget-topic`, and a tiny model, `MODEL`."""
    folder = save_guardrails(tmp_path_factory.mktemp("example"))
    for name in ("adapter", "forget-topic"):
        shutil.copytree(folder / "guard", folder / name)
    shutil.copytree(folder / "gemma3", folder / "MODEL")
    return folder


@pytest.fixture
def server(folder):
    guardrails = [entry(folder / "adapter", "adapter"), entry(folder / "forget-topic", "forget-topic")]
    server = Server(guardrails)
    server.names = [each["name"] for each in guardrails]
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def started(monkeypatch):
    """The command lines of engines that would be started, with vLLM as if it were installed."""
    found = []
    monkeypatch.setattr(serve, "find_spec", lambda name: argparse)
    monkeypatch.setattr(command, "serve_environment", lambda *args: {"VLLM_PLUGINS": "sae_unlearn"})
    monkeypatch.setattr(command, "replace_process", lambda words, environment: found.append(words))
    monkeypatch.setattr(serve, "check_port", lambda args: None)  # whatever else runs on this machine
    return found


def run(words, places):
    """Run a command line of this package, with the places of a container replaced by those of the test."""
    for old, new in places.items():
        words = [word.replace(old, str(new)) for word in words]
    return main(words)


def test_the_container_runs_the_command_line():
    assert 'ENTRYPOINT ["sae-unlearn"]' in DOCKERFILE.read_text()
    for words in readme_commands():
        build_parser().parse_args(words)


def test_the_server_of_the_compose_file_starts(folder, started, tmp_path):
    words = [interpolated(word, MODEL=str(folder / "MODEL")) for word in SERVICES["server"]["command"]]
    assert run(words, {"/adapter": folder / "adapter", "/records": tmp_path}) == 0
    (engine,) = started
    settings = json.loads(engine[engine.index("--additional-config") + 1])["sae_guardrail"]
    assert settings == {"paths": [str(folder / "adapter")], "log": str(tmp_path / "firings.jsonl")}
    assert SERVICES["server"]["ports"] == [f"{engine[engine.index('--port') + 1]}:8000"]


def test_the_check_of_the_compose_file_passes_and_fails(folder, server, capsys):
    words, places = SERVICES["check"]["command"], {"http://server:8000": server.url, "/adapter": folder / "adapter"}
    assert run(words, places) == 0, capsys.readouterr().out
    server.guardrails = None
    assert run(words, places) == 1


def test_the_health_check_of_the_compose_file(server):
    kind, program, *words = SERVICES["server"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python3")
    words = [word.replace("http://localhost:8000", server.url) for word in words]
    assert subprocess.run([sys.executable, *words], timeout=60).returncode == 0
    words = [word.replace("/health", "/nothing") for word in words]
    assert subprocess.run([sys.executable, *words], timeout=60, stderr=subprocess.DEVNULL).returncode == 1


def test_the_command_lines_of_the_readme_run(folder, server, started, monkeypatch):
    monkeypatch.chdir(folder)
    by_name = {words[0]: words for words in readme_commands()}
    assert run(by_name["serve"], {}) == 0
    assert len(started) == 1
    assert run(by_name["check"], {"http://localhost:8000": server.url}) == 0
