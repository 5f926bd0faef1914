"""Records of a worker's guardrails for each request.

States stay on the device until they are read or the request ends, so recording needs no device sync.
"""

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from sae_unlearn.engines.counts import Counts
from sae_unlearn.engines.request_ids import vllm_requests
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.runtime.firing import check_sink, firing_of


logger = logging.getLogger(__name__)

MOST_KEPT = 10_000
"""Number of records of ended requests that are kept; the oldest are dropped first."""


class _Last(NamedTuple):
    """The states of a pass `[T, S]`, and the token in it after which the record is taken."""

    config: SAEGuardrailConfig
    states: Tensor
    token: int
    enabled: bool


class Records:
    """The records of a worker by request.

    Args:
        log (str, *optional*): File to which the record of each request that ends is added, as a line of JSON.
        counts (Counts, *optional*): Where requests that end are counted.

    Raises:
        GuardrailError: If the file cannot be written.
    """

    def __init__(self, log: str | None = None, counts: Counts | None = None) -> None:
        self._log = None if log is None else check_sink(log, "sae_guardrail.log")
        self.counts = counts or Counts()
        self._running: dict[str, dict[str, _Last]] = {}
        self._ended: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._own: str | None = None

    def expect_check(self, own: str) -> None:
        """Neither log, count nor list the server's own test requests, whose ids begin with `own`.

        It must be a secret of the server: clients choose ids, too.
        """
        self._own = own

    def _is_own(self, request: str) -> bool:
        return self._own is not None and request.startswith(self._own)

    def note(
        self, request: str, name: str, config: SAEGuardrailConfig, states: Tensor, token: int, enabled: bool = True
    ) -> None:
        """Note the state of a request after a pass: `states[token]`."""
        self._running.setdefault(request, {})[name] = _Last(config, states, token, enabled)

    def accept(self, request: str, drafts: int) -> None:
        """Move the record of a request on by the drafted tokens of its last pass that were kept."""
        found = self._running.get(request, {})
        for name, last in found.items():
            found[name] = last._replace(token=min(last.token + drafts, len(last.states) - 1))

    def end(self, requests: Iterable[str]) -> None:
        """Close the records of requests that ended or were aborted, count and log them."""
        for request in requests:
            last = self._running.pop(request, None)
            if last is None:
                continue
            record = self._ended[request] = _read(last)
            while len(self._ended) > MOST_KEPT:
                self._ended.popitem(last=False)
            if self._is_own(request):
                continue
            for name, found in record.items():
                if found["enabled"]:
                    self.counts.add_request(name, found["action"], found["fired"], found["finite"])
            self._write({"request": request, "guardrails": record})

    def _write(self, line: dict[str, Any]) -> None:
        """Add a line to the log. A disk that is full does not stop the service: it is logged and counted."""
        if self._log is None:
            return
        try:
            with open(self._log, "a", encoding="utf-8") as file:  # type: ignore[arg-type]
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            self.counts.add_error("log")
            logger.error("sae_guardrail.log=%s cannot be written: %s. The record is lost.", self._log, error)

    def find(self, request: str = "", limit: int = 100) -> dict[str, dict[str, Any]]:
        """Return the records of running and ended requests, the newest `limit`, without removing them.

        Args:
            request (str, *optional*, defaults to ""): The id of an answer, see `vllm_requests`. "" means all.
            limit (int, *optional*, defaults to 100): Largest number of records.
        """
        known = [*self._ended, *self._running]
        found = vllm_requests(known, request) if request else [name for name in known if not self._is_own(name)]
        names = found[-limit:] if limit > 0 else []
        return {name: _read(self._running[name]) if name in self._running else self._ended[name] for name in names}

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the records of all running requests, and of those that ended since the last call.

        Returns:
            dict: By request and guardrail: `statistic` (None if it is not finite), `threshold`, `fired`, `at_token`,
            `evidence`, `tokens` and `finite`, as in `Firing`; `action`; and `enabled`, False if the request chose
            other guardrails.
        """
        ended, self._ended = self._ended, OrderedDict()
        return {**ended, **{request: _read(last) for request, last in self._running.items()}}


def _read(last: dict[str, _Last]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, (config, states, token, enabled) in last.items():
        fields = asdict(firing_of(name, config, 0, 0, states[token].tolist()))
        statistic = fields["statistic"]
        fields["statistic"] = statistic if math.isfinite(statistic) else None
        left = ("adapter", "call", "row", "request")
        found[name] = {key: value for key, value in fields.items() if key not in left}
        found[name] |= {"action": config.action, "enabled": enabled}
    return found
