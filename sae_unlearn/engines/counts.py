"""Counts of what the guardrails of an engine did, as plain numbers that can be sent between processes."""

from bisect import bisect_left
from typing import Any


SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""Upper bounds of the histogram of the time that the guardrails add to a forward pass."""


class Counts:
    """Counts since the start of an engine; they never fall.

    Attributes:
        guardrails (dict): By name `action`, `requests`, `fired` and `not_finite`: requests that ended with this
            guardrail enabled, those on which it fired, and those with activations that are not finite.
        errors (dict): Number by reason.
        seconds (list of int): Forward passes by added time: `seconds[i]` took up to `SECONDS[i]` and longer than the
            bound before; the last one counts those above all bounds.
        total_seconds (float): Time added to all passes. On a GPU it is the time to launch, not to compute.
    """

    def __init__(self) -> None:
        self.guardrails: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, int] = {}
        self.seconds = [0] * (len(SECONDS) + 1)
        self.total_seconds = 0.0

    def add_guardrail(self, name: str, action: str) -> None:
        """List a guardrail before its first request, so that its counts start at 0."""
        self.guardrails.setdefault(name, {"action": action, "requests": 0, "fired": 0, "not_finite": 0})

    def add_request(self, name: str, action: str, fired: bool, finite: bool) -> None:
        """Count a request that ended."""
        self.add_guardrail(name, action)
        found = self.guardrails[name]
        found["requests"] += 1
        found["fired"] += fired
        found["not_finite"] += not finite

    def add_error(self, reason: str) -> None:
        """Count an error."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def add_pass(self, seconds: float) -> None:
        """Count a forward pass."""
        self.seconds[bisect_left(SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def snapshot(self) -> dict[str, Any]:
        """Return the counts by the names of the attributes."""
        return {
            "guardrails": {name: dict(found) for name, found in self.guardrails.items()},
            "errors": dict(self.errors),
            "seconds": list(self.seconds),
            "total_seconds": self.total_seconds,
        }
