"""Records of a worker's guardrails for each request.

States stay on the device until they are read or the request ends, so recording needs no device sync.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.runtime.recording import firing_of


MOST_KEPT = 10_000
"""Records of requests that have ended, which are kept until they are read; the oldest go first."""


class _Last(NamedTuple):
    """The states of a pass `[T, S]`, and the token in it after which the record is taken."""

    config: SAEGuardrailConfig
    states: Tensor
    token: int


class Records:
    """The records of a worker by request.

    Args:
        log (str, *optional*): File to which the record of each request that ends is added, as a line of JSON.
    """

    def __init__(self, log: str | None = None) -> None:
        self._log = log
        self._running: dict[str, dict[str, _Last]] = {}
        self._ended: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def note(self, request: str, name: str, config: SAEGuardrailConfig, states: Tensor, token: int) -> None:
        """Note the state of a request after a pass: `states[token]`."""
        self._running.setdefault(request, {})[name] = _Last(config, states, token)

    def accept(self, request: str, drafts: int) -> None:
        """Move the record of a request on by the drafted tokens of its last pass that were kept."""
        found = self._running.get(request, {})
        for name, last in found.items():
            found[name] = last._replace(token=min(last.token + drafts, len(last.states) - 1))

    def end(self, requests: Iterable[str]) -> None:
        """Close the records of requests that ended or were aborted, and log them."""
        for request in requests:
            last = self._running.pop(request, None)
            if last is None:
                continue
            record = self._ended[request] = _read(last)
            while len(self._ended) > MOST_KEPT:
                self._ended.popitem(last=False)
            if self._log is not None:
                with open(self._log, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"request": request, "guardrails": record}, allow_nan=False) + "\n")

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the records of all running requests, and of those that ended since the last call.

        Returns:
            dict: By request and guardrail: `statistic` (None if it is not finite), `threshold`, `fired`, `at_token`,
            `evidence`, `tokens` and `finite`, as in `Firing`.
        """
        ended, self._ended = self._ended, OrderedDict()
        return {**ended, **{request: _read(last) for request, last in self._running.items()}}


def _read(last: dict[str, _Last]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, (config, states, token) in last.items():
        fields = asdict(firing_of(name, config, 0, 0, states[token].tolist()))
        statistic = fields["statistic"]
        fields["statistic"] = statistic if math.isfinite(statistic) else None
        found[name] = {key: value for key, value in fields.items() if key not in ("adapter", "call", "row")}
    return found
