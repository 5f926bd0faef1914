"""`GET /sae_guardrail/records`: records of the guardrails by request.

vLLM loads it if `VLLM_PLUGINS` names it.
"""

from typing import Any


class RecordsEndpoint:
    """Entry point of the group `vllm.endpoint_plugins`."""

    name = "sae_unlearn"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the route to vLLM's server."""
        from fastapi import Request  # of vLLM's environment

        async def records(request: Request, request_id: str = "") -> dict[str, Any]:
            ranks = await request.app.state.engine_client.collective_rpc("sae_guardrail_records")
            found: dict[str, Any] = {}
            for rank in ranks:
                for name, by_guardrail in (rank or {}).items():
                    if name.startswith(request_id):
                        found.setdefault(name, {}).update(by_guardrail)
            return found

        app.get("/sae_guardrail/records")(records)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the engine's client for the route."""
        state.engine_client = engine_client
