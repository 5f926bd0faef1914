"""The command `sae-unlearn serve`: arguments and run."""

import argparse
import os
import shlex
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sae_unlearn.checks import check_integer
from sae_unlearn.cli.arguments import Parser, add_adapter_arguments, add_model_arguments
from sae_unlearn.errors import UnlearnError


if TYPE_CHECKING:
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder


HELP = "serve a guarded model over HTTP, with vLLM or transformers, after a test of the guardrail"
EXAMPLES = """examples:
  sae-unlearn serve demo --adapter sae-unlearn-demo/forget-biology -- --max-model-len 1024 \\
      --no-enable-prefix-caching --no-enable-chunked-prefill
  sae-unlearn serve google/gemma-2-2b-it --adapter forget-biology --port 8000 --log firings.jsonl
  sae-unlearn serve MODEL --adapter bundle --per-request -- --max-model-len 8192

Options after -- go to the engine. The server has GET /sae_guardrail/records and, in /metrics, sae_guardrail:* (see
docs/serving.md). In another terminal, `sae-unlearn check --url URL --adapter FOLDER` asks it on the topic.
"""
_SERVING = 'pip install "transformers[serving]"'
ENGINES = ("auto", "vllm", "transformers")
PORT = 8000
"""Port on which both engines listen by default."""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, positional=True)
    add_adapter_arguments(parser, "folder or Hub id of a guardrail, or of a bundle", required=True)
    server = parser.group("server")
    server.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="serving engine (default: vllm if it is installed, else transformers)",
    )
    server.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: the engine's)")
    server.add_argument("--port", type=int, metavar="N", help="port (default: the engine's)")
    server.add_argument(
        "--per-request", action="store_true", help="let requests choose among a bundle's guardrails (default: all)"
    )
    server.add_argument("--log", metavar="FILE", help="add the record of each request to this file, as a line of JSON")
    parser.pass_on("engine_options", "-- OPTIONS", "options of the engine, which are passed on")


def run(args: argparse.Namespace) -> int:
    engine = _engine(args.engine)
    folders = _guardrails(args)
    settings: dict[str, Any] = {"paths": [str(_local(folder)) for folder in folders]}
    if args.per_request:
        settings["per_request"] = True
    if args.log is not None:
        from sae_unlearn.guardrail.runtime.firing import check_sink

        settings["log"] = str(check_sink(args.log, "--log"))
    check_port(args)
    whole = [str(folder) for folder in folders if folder.config().gate_scope == "sequence"]
    return {"vllm": _serve_with_vllm, "transformers": _serve_with_transformers}[engine](args, settings, whole)


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    return ""  # the server runs until it is stopped


def _engine(asked: str) -> str:
    if asked != "transformers" and find_spec("vllm") is not None:
        return "vllm"
    if asked == "vllm":
        raise ImportError("--engine vllm: vllm is not installed. Install it next to this package; see docs/vllm.md.")
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ImportError(f"--engine {asked}: no engine is installed. Install vLLM, or run: {_SERVING}.")
    return "transformers"


def check_port(args: argparse.Namespace) -> None:
    """Raise if the server could not listen, before it takes minutes to load a model."""
    flags = {word.partition("=")[0] for word in args.engine_options}
    if flags & {"--host", "--port", "--uds", "--headless"}:  # the engine listens elsewhere
        return
    port = PORT if args.port is None else args.port
    check_integer("--port", port, 0, 65535)
    try:
        family, kind, _, _, address = socket.getaddrinfo(args.host or "localhost", port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise UnlearnError(f"--port {port}: the server cannot listen there ({error}). Pass another --port.") from error


def _guardrails(args: argparse.Namespace) -> "list[GuardrailFolder]":
    """Return the folders of the guardrails, checked before a model is loaded."""
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    bundle = folder.find_bundle()
    folders = [folder] if bundle is None else [folder.member(name) for name in bundle.guardrails]
    if bundle is not None and bundle.lora is not None:
        raise UnlearnError(f"{folder} has the LoRA {bundle.lora}: pass a guardrail of it with --adapter-subfolder.")
    for each in folders:
        damage = each.artefact().damage
        if damage is not None:
            raise UnlearnError(f"{each}: {damage}. Download or fit it again.")
    return folders


def _local(folder: "GuardrailFolder") -> Path:
    """Return a guardrail's local folder. Files of the Hub, which are links, are copied."""
    from sae_unlearn.demo.model import demo_model_folder
    from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, WEIGHTS_NAME

    inside = PurePosixPath(folder.source, folder.subfolder)
    if folder.is_local:
        return Path(inside).expanduser().absolute()
    files = [folder.path(name) for name in (CONFIG_NAME, WEIGHTS_NAME)]
    copy = demo_model_folder().parent / "served" / str(folder.commit) / inside.name
    copy.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, copy / file.name)
    return copy


def _serve_with_vllm(args: argparse.Namespace, settings: dict[str, Any], whole: list[str]) -> int:
    import torch

    from sae_unlearn.engines.vllm.command import replace_process, serve_command, serve_environment

    if args.device is not None:
        raise UnlearnError("--device: vLLM runs on the device of its build. Choose among GPUs by CUDA_VISIBLE_DEVICES.")
    more = list(args.engine_options)
    for flag, value in (("--revision", args.model_revision), ("--dtype", None if args.dtype == "auto" else args.dtype)):
        more += [] if value is None else [flag, value]
    flags = ("--no-enable-prefix-caching", "--no-enable-chunked-prefill")
    if whole and not all(flag in more for flag in flags):
        raise UnlearnError(
            f'{whole[0]} has gate_scope="sequence": it judges whole prompts only. Fit it with --for-serving, or add '
            f"-- {' '.join(flags)}."
        )
    cuda = torch.cuda.is_available()
    if cuda and "--enforce-eager" not in more:
        print("CUDA graphs are not tested with a guardrail: adding --enforce-eager.")
        more.append("--enforce-eager")
    model = _model(args.model)
    if args.model == "demo" and "--served-model-name" not in more:
        more += ["--served-model-name", "demo"]
    command = serve_command(model, settings, more, args.host, args.port)
    environment = serve_environment(os.environ, cuda)
    print(f"VLLM_PLUGINS={environment['VLLM_PLUGINS']} {shlex.join(command)}")
    replace_process(command, environment)
    return 0  # not reached


def _serve_with_transformers(args: argparse.Namespace, settings: dict[str, Any], whole: list[str]) -> int:
    import sys

    from sae_unlearn.engines.vllm.command import replace_process

    refused = {"--per-request": args.per_request, "--model-revision": args.model_revision is not None}
    for name, given in refused.items():
        if given:
            raise UnlearnError(f"{name}: transformers' server has no such option. Leave it out, or use --engine vllm.")
    more = list(args.engine_options)
    if whole and "--no-continuous-batching" not in more:
        raise UnlearnError(
            f'{whole[0]} has gate_scope="sequence": it judges whole prompts only. Fit it with --for-serving, or add '
            "-- --no-continuous-batching."
        )
    command = [sys.executable, "-m", "sae_unlearn.engines.transformers_serve", _model(args.model)]
    for path in settings["paths"]:
        command += ["--guardrail", path]
    dtype = None if args.dtype == "auto" else args.dtype
    options = {"--log": settings.get("log"), "--host": args.host, "--port": args.port, "--dtype": dtype}
    for flag, value in (options | {"--device": args.device}).items():
        command += [] if value is None else [flag, str(value)]
    command += more
    print(shlex.join(command))
    replace_process(command, os.environ)
    return 0  # not reached


def _model(name: str) -> str:
    """Return the name of the model for an engine: the folder of the demo's, converted the first time."""
    if name != "demo":
        return name
    from sae_unlearn.demo.model import demo_model_folder, load_demo_model

    load_demo_model()
    return str(demo_model_folder())
