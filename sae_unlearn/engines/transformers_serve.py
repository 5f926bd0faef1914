"""`transformers serve` with guardrails on the model.

    python -m sae_unlearn.engines.transformers_serve MODEL --guardrail FOLDER [--log FILE] [OPTIONS]

It is transformers' own server (5.16 to 5.24, `pip install "transformers[serving]"`) for one model, and takes the
options of `transformers serve`. The guardrails are attached when the model is loaded, before the server listens.
`--continuous-batching` is the default; `--no-continuous-batching` answers by `generate`. More routes:

- `GET /sae_guardrail/guardrails`: the guardrails, and what their test found.
- `GET /sae_guardrail/records?request_id=ID`: records of ended requests, by the id in the answer; the newest 100 without
  an id. Only with continuous batching.
- `GET /metrics`: Prometheus metrics, see `sae_unlearn.engines.prometheus`, if `prometheus_client` is installed.

When the model is loaded, each guardrail is tested by its stored rows, see `sae_unlearn.engines.attached_check`.
"""

import argparse
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from torch import nn

from sae_unlearn.engines.attached_check import check_attached
from sae_unlearn.engines.counts import Counts
from sae_unlearn.engines.prometheus import GuardrailCollector
from sae_unlearn.engines.request_ids import transformers_requests
from sae_unlearn.errors import GuardrailError, GuardrailUnsupported, UnlearnError
from sae_unlearn.guardrail.attach import attach_guardrail
from sae_unlearn.guardrail.config_parts.layout import CONFIG_LIMIT, CONFIG_NAME, SEALS
from sae_unlearn.guardrail.gate.packed import check_packable
from sae_unlearn.guardrail.runtime.firing import Firing, check_sink, firing_line
from sae_unlearn.guardrail.runtime.recording import record_firings
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


logger = logging.getLogger(__name__)

MOST_KEPT = 10_000
"""Requests whose records are kept; the oldest are dropped first."""


class GuardedServing:
    """The guardrails of a server.

    Args:
        paths (sequence of str): Folders or Hub ids. Each guardrail is known by the last part of its path.
        batching (bool, *optional*, defaults to True): The server uses continuous batching.
        log (str, *optional*): File to which the record of each request that ends is added, as a line of JSON.
        model_name (str, *optional*, defaults to ""): Name by which requests ask for the model; also the label
            `model_name` of the metrics.

    Raises:
        GuardrailError: If a folder is malformed or damaged, two have one name, or the log cannot be written.
        GuardrailUnsupported: If a guardrail cannot judge requests in continuous batching.
    """

    def __init__(
        self, paths: Sequence[str], batching: bool = True, log: str | None = None, model_name: str = ""
    ) -> None:
        self._model_name = model_name
        self._folders = {os.path.basename(os.path.normpath(path)): GuardrailFolder.open(path) for path in paths}
        if len(self._folders) < len(paths):
            raise GuardrailError(f"--guardrail: expected different names, got {sorted(paths)}. Rename a folder.")
        self._configs, self._seals = {}, {}
        for name, folder in self._folders.items():
            artefact = folder.artefact()
            if artefact.damage is not None:
                raise GuardrailError(f"{folder}: {artefact.damage}. Download or fit it again.")
            config = self._configs[name] = artefact.config
            self._seals[name] = folder.read_json(CONFIG_NAME, CONFIG_LIMIT)
            if batching:
                check_packable(config)
                if config.gate_scope == "sequence":
                    raise GuardrailUnsupported(
                        f'gate_scope="sequence" of {name}: expected "prefix", since continuous batching cuts prompts. '
                        "Fit with --for-serving, or add --no-continuous-batching."
                    )
        self._log = None if log is None else check_sink(log, "--log")
        self.counts = Counts()
        for name, config in self._configs.items():
            self.counts.add_guardrail(name, config.action)
        self._checked: dict[str, str] = {}
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._guarded: list[nn.Module] = []
        self._lock = threading.Lock()
        self._recordings = ExitStack()

    def attach(self, model: nn.Module) -> None:
        """Attach the guardrails to a model, unless it has them.

        Raises:
            GuardrailError: If a guardrail was fitted on another model, or does not do on its stored rows what it did at
                the fit.
        """
        with self._lock:
            if any(model is guarded for guarded in self._guarded):
                return
            guarded: Any = model
            for name, folder in self._folders.items():
                guarded = attach_guardrail(guarded, folder, adapter_name=name)
            self._checked = check_attached(guarded)
            for name, sentence in self._checked.items():
                logger.warning("guardrail %s: %s", name, sentence)
            self._recordings.enter_context(record_firings(guarded, to=self._keep))
            self._guarded.append(model)

    def _keep(self, firing: Firing) -> None:
        action = self._configs[firing.adapter].action
        self.counts.add_request(firing.adapter, action, firing.fired, firing.finite)
        if firing.request is not None:
            record = asdict(firing) | {"action": action}
            for name in ("adapter", "call", "row", "request"):
                del record[name]
            self._records.setdefault(firing.request, {})[firing.adapter] = record
            while len(self._records) > MOST_KEPT:
                self._records.popitem(last=False)
        if self._log is not None:
            with open(self._log, "a", encoding="utf-8") as file:  # type: ignore[arg-type]
                file.write(firing_line(firing) + "\n")

    def guardrails(self) -> dict[str, Any]:
        """Return what `GET /sae_guardrail/guardrails` answers."""
        found = [
            {
                "name": name,
                "layer": config.layer,
                "action": config.action,
                "gate_scope": config.gate_scope,
                "threshold": config.tau,
                **{seal: self._seals[name].get(seal) for seal in SEALS},
                "check": self._checked.get(name),
            }
            for name, config in self._configs.items()
        ]
        return {"engine": "transformers", "model": self._model_name, "per_request": False, "guardrails": found}

    def records(self, request_id: str = "", limit: int = 100) -> dict[str, Any]:
        """Return what `GET /sae_guardrail/records` answers: by request and guardrail, the fields of `Firing`."""
        known = list(self._records)
        names = transformers_requests(known, request_id) if request_id else known
        return {name: self._records[name] for name in names[-limit:]} if limit > 0 else {}

    def metrics(self) -> Any:
        """Return what `GET /metrics` answers: the counts in Prometheus' text format."""
        from fastapi import Response
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry, collector = CollectorRegistry(), GuardrailCollector(self._model_name)
        collector.counts = self.counts.snapshot()
        registry.register(collector)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def install(serving: GuardedServing) -> None:
    """Make transformers' server in this process attach the guardrails and answer the routes."""
    from transformers.cli.serving import server
    from transformers.cli.serving.model_manager import ModelManager

    load, build = ModelManager.load_model_and_processor, server.build_server

    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = load(self, *args, **kwargs)
        serving.attach(found[0])
        return found

    def with_routes(*args: Any, **kwargs: Any) -> Any:
        app = build(*args, **kwargs)
        app.get("/sae_guardrail/guardrails")(serving.guardrails)
        app.get("/sae_guardrail/records")(serving.records)
        if find_spec("prometheus_client") is not None:
            app.get("/metrics", include_in_schema=False)(serving.metrics)
        return app

    ModelManager.load_model_and_processor = guarded
    server.build_server = with_routes


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_unlearn.engines.transformers_serve",
        description="transformers' own server with guardrails on its model; all other options are those of "
        "`transformers serve`",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder or Hub id of the model")
    parser.add_argument(
        "--guardrail", action="append", required=True, metavar="FOLDER", help="folder or Hub id; may be repeated"
    )
    parser.add_argument("--log", metavar="FILE", help="add the record of each request to this file, as a line of JSON")
    args, rest = parser.parse_known_args(argv)
    batching = "--no-continuous-batching" not in rest
    if batching and "--continuous-batching" not in rest:
        rest.append("--continuous-batching")
    try:
        install(GuardedServing(args.guardrail, batching, args.log, args.model))
        run: Callable[[], None] = _command()
        sys.argv = ["transformers", "serve", args.model, *rest]
        run()
    except UnlearnError as error:
        sys.exit(f"{parser.prog}: {error}")


def _command() -> Callable[[], None]:
    from transformers.cli.transformers import main as command

    return command


if __name__ == "__main__":
    main()
