"""Prometheus metrics of the guardrails, in the registry of the engine that serves.

sae_guardrail:requests_total{model_name, guardrail}             requests that ended with the guardrail enabled
sae_guardrail:fired_total{model_name, guardrail, action}        those on which it fired
sae_guardrail:would_block_total{model_name, guardrail}          those on which one that only records fired
sae_guardrail:errors_total{model_name, reason}                  not_finite, bad_request, log
sae_guardrail:pass_seconds{model_name}                          histogram: time added to a forward pass
"""

from collections.abc import Iterator
from typing import Any

from sae_unlearn.engines.counts import SECONDS


class GuardrailCollector:
    """Collector for `prometheus_client`, of the last counts that were read from the engine.

    Args:
        model_name (str): Value of the label `model_name`, as in the engine's own metrics.

    Attributes:
        counts (dict): A `Counts.snapshot`, or empty before the first one.
        rejected (int): Requests that were refused before the engine got them.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.counts: dict[str, Any] = {}
        self.rejected = 0

    def collect(self) -> Iterator[Any]:
        """Yield the metrics. Called by `prometheus_client`."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        guardrails = self.counts.get("guardrails", {})
        requests = CounterMetricFamily(
            "sae_guardrail:requests",
            "Requests that ended with the guardrail enabled.",
            labels=("model_name", "guardrail"),
        )
        fired = CounterMetricFamily(
            "sae_guardrail:fired",
            "Requests on which the guardrail fired.",
            labels=("model_name", "guardrail", "action"),
        )
        would_block = CounterMetricFamily(
            "sae_guardrail:would_block",
            "Requests on which a guardrail fired that only records.",
            labels=("model_name", "guardrail"),
        )
        for name, found in guardrails.items():
            requests.add_metric([self.model_name, name], found["requests"])
            fired.add_metric([self.model_name, name, found["action"]], found["fired"])
            if found["action"] == "record":
                would_block.add_metric([self.model_name, name], found["fired"])
        yield from (requests, fired, would_block)
        errors = CounterMetricFamily(
            "sae_guardrail:errors", "Errors of the guardrails by reason.", labels=("model_name", "reason")
        )
        reasons = {
            "not_finite": sum(found["not_finite"] for found in guardrails.values()),
            "bad_request": self.rejected,
        }
        for reason, count in ({"log": 0} | reasons | self.counts.get("errors", {})).items():
            errors.add_metric([self.model_name, reason], count)
        yield errors
        seconds = HistogramMetricFamily(
            "sae_guardrail:pass_seconds",
            "Time that the guardrails add to a forward pass, on a GPU to launch their kernels.",
            labels=("model_name",),
        )
        counted = self.counts.get("seconds", [0] * (len(SECONDS) + 1))
        below, buckets = 0, []
        for bound, count in zip((*map(str, SECONDS), "+Inf"), counted, strict=True):
            below += count
            buckets.append((bound, below))
        seconds.add_metric([self.model_name], buckets, self.counts.get("total_seconds", 0.0))
        yield seconds


_registered: list[GuardrailCollector] = []


def register(model_name: str) -> GuardrailCollector:
    """Return a new collector in the default registry, in place of an earlier one of this process."""
    from prometheus_client import REGISTRY

    while _registered:
        REGISTRY.unregister(_registered.pop())
    collector = GuardrailCollector(model_name)
    REGISTRY.register(collector)
    _registered.append(collector)
    return collector


def count_rejected() -> None:
    """Count a request that was refused before the engine got it, if this process has metrics."""
    for collector in _registered:
        collector.rejected += 1
