"""Recording of the firings of each row: `record_firings`."""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from sae_unlearn.backbone.layers import check_module
from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.runtime.firing import Firing, FiringSink, check_sink, firing_of, send_firings
from sae_unlearn.guardrail.runtime.gate_history import GateHistory


logger = logging.getLogger(__name__)


MOST_WAITING = 256
"""Requests without a cache whose states wait on a device; at this number one sync reads all."""

MOST_UNSENT = 100_000
"""Records kept for a sink that fails."""


@dataclass(eq=False)
class _Request:
    """Records of one guardrail about one request.

    Attributes:
        name, config: The guardrail's.
        call: Number of the request among those of this guardrail.
        seen: Its `GateHistory`, which is still being filled, or the last state `[batch, STATE_SIZE]`.
        cache: The cache with the history.
        request: Its id, in `generate_batch`.
        records: Records of its rows, after the request ended and was read.
    """

    name: str
    config: SAEGuardrailConfig
    call: int
    seen: GateHistory | Tensor | None
    cache: weakref.ref[Cache] | None = None
    request: str | None = None
    records: list[Firing] | None = None

    def is_over(self) -> bool:
        """Return True if no tokens can be added."""
        return not isinstance(self.seen, GateHistory) or (self.cache is not None and self.cache() is None)

    def end(self) -> None:
        """Drop the history and the cache, and keep the last state."""
        self.seen, self.cache = _state_of(self.seen), None

    def rows(self) -> list[Firing]:
        """Return the records of its rows so far. It waits for the device, unless the request was read."""
        if self.records is not None:
            return self.records
        state, over = _state_of(self.seen), self.is_over()
        if state is None:  # no tokens; or another thread has just read it
            return self.records or []
        rows = state.float().cpu().tolist()
        told = (self.name, self.config, self.call)
        records = [firing_of(*told, row, values, self.request) for row, values in enumerate(rows)]
        if over:
            self.records, self.seen = records, None
        return records


class Recorder:
    """Collects the states of guarded layers.

    Recording does not wait for a device: a state is read when it is requested, or when its request ends and a sink
    receives it. Sent records are dropped.

    Args:
        to (FiringSink, *optional*): Sink of the records as requests end, see `send_firings`.
    """

    def __init__(self, to: FiringSink | None = None) -> None:
        self.thread = threading.get_ident()
        self._to = to
        self._requests: dict[int, _Request] = {}  # in order, without those whose records were read for the sink
        self._unread: dict[int, _Request] = {}  # those with a cache in use
        self._ended: deque[int] = deque()  # those that were not sent
        self._numbers = count()
        self._calls: dict[str, int] = {}
        self._unsent: deque[Firing] = deque()
        self._dropped = 0
        self._sending = threading.Lock()
        self._due = self._failed = self._closed = False

    @staticmethod
    def listening(recorders: list["Recorder"]) -> list["Recorder"]:
        """Return the recorders for a call of this thread: those this thread opened, or else all."""
        own = [recorder for recorder in recorders if recorder.thread == threading.get_ident()]
        return own or list(recorders)

    def note(
        self,
        name: str,
        config: SAEGuardrailConfig,
        seen: GateHistory | Tensor,
        cache: Cache | None = None,
        request: str | None = None,
    ) -> None:
        """Note the state of a guardrail after a forward pass.

        Args:
            name (str): Name of the guardrail.
            config (SAEGuardrailConfig): Its config.
            seen (GateHistory or Tensor): The request's history, or the last state `[batch, STATE_SIZE]` without a
                cache.
            cache (Cache, *optional*): The cache with the history.
            request (str, *optional*): Id of the request, in `generate_batch`.
        """
        if self._closed or (isinstance(seen, GateHistory) and any(reader is self for reader in seen.readers)):
            return
        call = self._calls[name] = self._calls.get(name, -1) + 1
        number, noted = next(self._numbers), _Request(name, config, call, seen, request=request)
        self._requests[number] = noted
        if isinstance(seen, GateHistory):
            seen.readers.append(self)
            self._unread[number] = noted
            if cache is not None and not torch.compiler.is_compiling():
                noted.cache = weakref.ref(cache, self._let_go)
        elif self._to is not None:
            self._ended.append(number)
            at_once = seen.device.type == "cpu"  # on other devices it would wait for earlier layers
            if (at_once or len(self._ended) >= MOST_WAITING) and not torch.compiler.is_compiling():
                self._deliver()

    def keep(self, history: GateHistory) -> None:
        """Keep the end of a request whose cache will be used for another one."""
        for request in list(self._unread.values()):
            if request.seen is history:
                request.end()
        self._deliver()

    def close(self) -> None:
        """End the recording: later calls change nothing, caches are dropped, and unsent records are sent.

        Raises:
            Exception: Any error of the sink.
            GuardrailError: If records were dropped, since the sink failed for too long.
        """
        self._closed = True
        for request in list(self._unread.values()):
            if isinstance(request.seen, GateHistory):
                request.seen.readers[:] = [reader for reader in request.seen.readers if reader is not self]
                request.end()
        if self._to is None:
            return
        with self._sending:
            self._send(self._to)
        if self._dropped:
            raise GuardrailError(f"to={self._to!r:.80}: {self._dropped} records were dropped. Use a sink that works.")

    def __deepcopy__(self, memo: Any) -> "Recorder":
        return self  # copies of a model share the recording

    def firings(self) -> list[Firing]:
        """Return the records of all rows of all requests so far; with a sink, those that were not sent."""
        read = [firing for request in list(self._requests.values()) for firing in request.rows()]
        return [*self._unsent, *read]

    def _let_go(self, cache: weakref.ref[Cache]) -> None:
        """End a request whose cache was dropped."""
        self._deliver()

    def _collect(self) -> None:
        """Drop the histories of requests that are over."""
        for number, request in list(self._unread.items()):
            if request.is_over() and self._unread.pop(number, None) is not None:
                request.end()
                if self._to is not None:
                    self._ended.append(number)

    def _deliver(self) -> None:
        """Send the records of requests that are over.

        It runs while an answer is on its way, in any thread, and again from within a sink. So it raises nothing, and
        does not wait for another sending thread, which checks once more at its end. Records that could not be sent are
        kept for the next time, and raise at the end of the recording.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return
        self._collect()
        self._due = self._to is not None
        while self._to is not None and self._due and self._sending.acquire(blocking=False):
            try:
                self._due = False
                self._send(self._to)
            except Exception as error:
                if not self._failed:
                    logger.warning("records of firings cannot be sent, and are kept for later: %r", error)
                self._failed = True
            finally:
                self._sending.release()

    def _send(self, to: FiringSink) -> None:
        self._collect()
        while self._ended:
            number = self._ended.popleft()
            self._unsent.extend(self._requests[number].rows())
            del self._requests[number]
        try:
            send_firings(self._unsent, to)
        finally:
            while len(self._unsent) > MOST_UNSENT:
                self._unsent.popleft()
                self._dropped += 1


class Firings:
    """Live view of a recording, used like a list. See `Firing`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __iter__(self) -> Iterator[Firing]:
        return iter(self._recorder.firings())

    def __len__(self) -> int:
        return len(self._recorder.firings())

    def __getitem__(self, index: int) -> Firing:
        return self._recorder.firings()[index]

    def __repr__(self) -> str:
        return f"Firings({self._recorder.firings()!r})"


@contextmanager
def record_firings(model: nn.Module, to: FiringSink | None = None) -> Iterator[Firings]:
    """Record what every guardrail on `model` does with every row inside the `with` block.

    Rows are described by their statistic only; no text or token is kept. Calls of other threads are recorded too,
    except those of a thread with a recording of its own.

    Args:
        model (nn.Module): A model with guardrails.
        to (FiringSink, *optional*): Sink of each request's records when it ends, that is when its cache is dropped or
            emptied (`generate` drops its own before it returns; compiled code does not), and of the rest at the end of
            the block, even after an error: a `logging.Logger`, a callable that receives each `Firing`, or a file to
            which each is appended as a line of JSON. A sent record is no longer in the list of the block, so a server
            can stay in one block. An error of the sink inside the block breaks no answer: sending is tried again, and
            the error is raised at the end. Of more than 100,000 waiting records the oldest are dropped.

    Example:

    ```python
    with record_firings(model) as firings:
        model.generate(**inputs)
    for firing in firings:
        print(firing.adapter, firing.row, firing.statistic, firing.fired)
    ```

    Yields:
        Firings: The records, and what happened to them.

    Raises:
        GuardrailError: If the model has no guardrail, or `to` is not a sink; at the end, if records were dropped.
    """
    with as_guardrail_error():
        check_module(model)
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "recorders") and hasattr(module, "guard_config")
    ]
    if not layers:
        raise GuardrailError(f"model: expected a {type(model).__name__} with a guardrail. Attach one.")
    recorder = Recorder(None if to is None else check_sink(to))
    for layer in layers:
        layer.recorders.append(recorder)
    try:
        yield Firings(recorder)
    finally:
        for layer in layers:
            layer.recorders.remove(recorder)
        recorder.close()


def _state_of(seen: GateHistory | Tensor | None) -> Tensor | None:
    """The present state `[batch, STATE_SIZE]`, or None of an empty history."""
    state = seen.last() if isinstance(seen, GateHistory) else seen
    return None if state is None else state.detach().clone()
