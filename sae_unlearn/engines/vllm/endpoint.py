"""The part of the plugin in vLLM's server: check before it takes traffic, records by request, metrics.

vLLM loads it if `VLLM_PLUGINS` names `sae_unlearn`; `sae-unlearn serve` sets it.

- Before the server listens, `selfcheck` sends the probe of each guardrail through the engine. If the gate does not do
  what it did at the fit, the server does not start.
- `GET /sae_guardrail/guardrails`: the guardrails, and what the check found.
- `GET /sae_guardrail/records?request_id=ID`: records of a request; without an id, the newest 100.
- `GET /metrics`: those of `sae_unlearn.engines.prometheus` among vLLM's own.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

from sae_unlearn.engines import prometheus
from sae_unlearn.engines.vllm.selfcheck import check_engine_client, describe
from sae_unlearn.engines.vllm.settings import Settings


logger = logging.getLogger("vllm.sae_unlearn")

SCRAPE_SECONDS = 5.0
"""Longest wait for the engine before `/metrics` answers with the counts of the last scrape."""


class GuardrailEndpoint:
    """Entry point of the group `vllm.endpoint_plugins`."""

    name = "sae_unlearn"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._client: Any = None
        self._collector: prometheus.GuardrailCollector | None = None
        self._guardrails: list[dict[str, Any]] = []
        self._per_request = False

    def attach_router(self, app: Any) -> None:
        """Add the routes to vLLM's server."""

        async def guardrails() -> dict[str, Any]:
            return {"engine": "vllm", "per_request": self._per_request, "guardrails": self._guardrails}

        async def records(request_id: str = "", limit: int = 100) -> dict[str, Any]:
            found: dict[str, Any] = {}
            if self._guardrails:
                for worker in await self._client.collective_rpc("sae_guardrail_find", args=(request_id, limit)):
                    for name, by_guardrail in (worker or {}).items():
                        found.setdefault(name, {}).update(by_guardrail)
            return found

        app.get("/sae_guardrail/guardrails")(guardrails)
        app.get("/sae_guardrail/records")(records)
        app.add_middleware(_BeforeMetrics, refresh=self._refresh)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Check the engine and begin to count.

        Raises:
            GuardrailError: If a guardrail does not do what it did at the fit. The server does not start.
        """
        settings = Settings.of(engine_client.vllm_config)
        if settings is None:
            return
        self._client, self._per_request = engine_client, settings.per_request
        self._guardrails = describe(settings)
        for found, sentence in zip(self._guardrails, await check_engine_client(engine_client, settings), strict=True):
            found["check"] = sentence
            logger.info("guardrail %s: %s", found["name"], sentence)
        served = engine_client.vllm_config.model_config.served_model_name
        self._collector = prometheus.register(served if isinstance(served, str) else served[0])
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            logger.warning("metrics of the guardrails: expected --api-server-count 1. /metrics does not show them.")
        await self._refresh()

    async def _refresh(self) -> None:
        """Read the counts of the engine."""
        if self._collector is None:
            return
        try:
            workers = await asyncio.wait_for(self._client.collective_rpc("sae_guardrail_counts"), SCRAPE_SECONDS)
        except Exception as error:  # the engine is in a long pass, or dead: the last counts stay
            logger.warning("counts of the guardrails: expected an answer of the engine, got %r.", error)
            return
        self._collector.counts = merged(workers)


def merged(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of an engine's workers as one.

    Workers of tensor parallelism count the same requests, and those of a pipeline hold different guardrails; the
    slowest worker's time counts.
    """
    found = max(workers, key=lambda worker: float(worker["total_seconds"]))
    guardrails = {name: counts for worker in workers for name, counts in worker["guardrails"].items()}
    errors = {reason: count for worker in workers for reason, count in worker["errors"].items()}
    return {**found, "guardrails": guardrails, "errors": errors}


class _BeforeMetrics:
    """Middleware that reads the counts before `/metrics` is answered."""

    def __init__(self, app: Any, refresh: Callable[[], Awaitable[None]]) -> None:
        self._app, self._refresh = app, refresh

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/metrics"):
            await self._refresh()
        await self._app(scope, receive, send)
