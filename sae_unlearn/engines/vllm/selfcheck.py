"""Check of a running engine by the probes of its guardrails, before a server takes traffic."""

import secrets
from typing import Any

from sae_unlearn.engines.probe_check import finding, rows_to_test
from sae_unlearn.engines.vllm.settings import KEY, Settings
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.check.probe import ProbeRow
from sae_unlearn.guardrail.config_parts.layout import CONFIG_LIMIT, CONFIG_NAME, SEALS
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


def describe(settings: Settings) -> list[dict[str, Any]]:
    """Return name, layer, action, scope, threshold and seals of each guardrail, in the order of the paths."""
    found = []
    for path, name in zip(settings.paths, settings.names, strict=True):
        folder = GuardrailFolder.open(path)
        config, stored = folder.config(), folder.read_json(CONFIG_NAME, CONFIG_LIMIT)
        fields = {"layer": config.layer, "action": config.action, "gate_scope": config.gate_scope}
        seals = {seal: stored.get(seal) for seal in SEALS}
        found.append({"name": name, **fields, "threshold": config.tau, **seals})
    return found


async def check_engine_client(client: Any, settings: Settings) -> list[str]:
    """Send the probe of each guardrail through the engine, and return a finding for each.

    A guardrail behind an earlier layer's guardrail that cannot be disabled by request reads a stream which the earlier
    one may have edited, so it is only checked that it judges.

    Args:
        client (EngineClient): vLLM's.
        settings (Settings): What the operator asks for.

    Raises:
        GuardrailError: If a guardrail did not judge, or not as at the fit.
    """
    limit = int(client.vllm_config.model_config.max_model_len) - 1
    vocabulary = int(client.vllm_config.model_config.get_vocab_size())
    configs = [GuardrailFolder.open(path).config() for path in settings.paths]
    first = min(config.layer for config in configs)
    own = f"sae_guardrail-check-{secrets.token_hex(16)}"
    await client.collective_rpc("sae_guardrail_expect_check", args=(own,))
    found: list[str] = []
    for name, config in zip(settings.names, configs, strict=True):
        unedited = settings.per_request or config.layer == first
        rows = rows_to_test(config, vocabulary, limit)
        ids = [f"{own}-{len(found)}-{number}" for number in range(len(rows))]
        fired = [await _fires(client, name, request, row, settings) for request, row in zip(ids, rows, strict=True)]
        found.append(finding(name, rows, fired, unedited))
    return found


async def _fires(client: Any, name: str, request: str, row: ProbeRow, settings: Settings) -> bool:
    """Return whether the guardrail fired on a row.

    Raises:
        GuardrailError: If it did not judge it.
    """
    from vllm import SamplingParams

    extra = {KEY: name} if settings.per_request else None
    params = SamplingParams(temperature=0, max_tokens=1, detokenize=False, extra_args=extra)
    async for _ in client.generate({"prompt_token_ids": row.ids}, params, request):
        pass
    workers = await client.collective_rpc("sae_guardrail_find", args=(request,))
    records = [by[name] for worker in workers for by in worker.values() if name in by]
    if not records or not all(record["enabled"] and record["tokens"] for record in records):
        raise GuardrailError(
            f"guardrail {name}: expected a record of a request of {len(row.ids)} tokens, got {records!r:.80}. The "
            "server is not guarded. Check --additional-config."
        )
    return any(record["fired"] for record in records)
