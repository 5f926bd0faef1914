"""`GuardrailWorker`, the class for vLLM's flag `--worker-extension-cls`.

vLLM resolves it by name in every worker and does not start without it, while a plugin that is not installed cannot
complain: it is the flag for production.
"""

from typing import Any

from sae_unlearn.engines.vllm.plugin import install
from sae_unlearn.engines.vllm.worker import WorkerGuards


class GuardrailWorker:
    """Extension of vLLM's workers.

    Its option is `--worker-extension-cls sae_unlearn.engines.vllm.extension.GuardrailWorker`.
    """

    sae_guardrail: WorkerGuards

    def sae_guardrail_ready(self) -> list[str]:
        """Return the names of the guardrails on this worker's layers. Called by `collective_rpc`."""
        return self.sae_guardrail.ready()

    def sae_guardrail_records(self) -> dict[str, dict[str, Any]]:
        """Return the records by request, see `Records.take`. Called by `collective_rpc`."""
        return self.sae_guardrail.records.take()

    def sae_guardrail_find(self, request: str = "", limit: int = 100) -> dict[str, dict[str, Any]]:
        """Return records without removing them, see `Records.find`. Called by `collective_rpc`."""
        return self.sae_guardrail.records.find(request, limit)

    def sae_guardrail_expect_check(self, own: str) -> None:
        """Name the server's own test requests, see `Records.expect_check`. Called by `collective_rpc`."""
        self.sae_guardrail.records.expect_check(own)

    def sae_guardrail_counts(self) -> dict[str, Any]:
        """Return the counts since the start, see `Counts`. Called by `collective_rpc`."""
        return self.sae_guardrail.counts.snapshot()


install()  # a worker that imports this class needs the plugin, whatever VLLM_PLUGINS says
