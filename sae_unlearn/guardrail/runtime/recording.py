"""What each row did: `record_firings`."""

import logging
import math
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
from sae_unlearn.guardrail.gate import STATE_SIZE, State, statistic_of
from sae_unlearn.guardrail.runtime.firing import Firing, FiringSink, check_sink, send_firings
from sae_unlearn.guardrail.runtime.gate_history import GateHistory


logger = logging.getLogger(__name__)


MOST_WAITING = 256
"""Requests without a cache whose states wait on a device to be read; then one wait is taken for all of them."""

MOST_UNSENT = 100_000
"""Records that are kept for a sink that fails."""


@dataclass(eq=False)
class _Request:
    """What one guardrail saw of one request.

    Attributes:
        name, config: the guardrail's.
        call: number of the request among those of this guardrail.
        seen: its `GateHistory`, which goes on being filled, or the last state `[batch, STATE_SIZE]`.
        cache: the cache in which the history is.
        records: what its rows did, once the request is over and was read.
    """

    name: str
    config: SAEGuardrailConfig
    call: int
    seen: GateHistory | Tensor | None
    cache: weakref.ref[Cache] | None = None
    records: list[Firing] | None = None

    def is_over(self) -> bool:
        """Whether nothing can be added to it."""
        return not isinstance(self.seen, GateHistory) or (self.cache is not None and self.cache() is None)

    def end(self) -> None:
        """Let go of the history and the cache; the last state is left."""
        self.seen, self.cache = _state_of(self.seen), None

    def rows(self) -> list[Firing]:
        """What its rows did so far. Waits for the device, unless the request was read."""
        if self.records is not None:
            return self.records
        state, over = _state_of(self.seen), self.is_over()
        if state is None:  # of nothing seen; or another thread has just read it
            return self.records or []
        rows = state.float().cpu().tolist()
        records = [firing_of(self.name, self.config, self.call, row, values) for row, values in enumerate(rows)]
        if over:
            self.records, self.seen = records, None
        return records


class Recorder:
    """Collects what guarded layers saw. Recording waits for no device: a state is read when somebody asks for it, or
    when its request is over and there is a sink that it goes to. What a sink was sent is let go.

    Args:
        to: where records go as requests end, see `send_firings`; None for nowhere.
    """

    def __init__(self, to: FiringSink | None = None) -> None:
        self.thread = threading.get_ident()
        self._to = to
        self._requests: dict[int, _Request] = {}  # in their order, without those whose records were read for the sink
        self._unread: dict[int, _Request] = {}  # those whose cache is in use
        self._ended: deque[int] = deque()  # those that the sink has not had
        self._numbers = count()
        self._calls: dict[str, int] = {}
        self._unsent: deque[Firing] = deque()
        self._dropped = 0
        self._sending = threading.Lock()
        self._due = self._failed = self._closed = False

    @staticmethod
    def listening(recorders: list["Recorder"]) -> list["Recorder"]:
        """The recorders a call of this thread goes to: those this thread opened, or else all."""
        own = [recorder for recorder in recorders if recorder.thread == threading.get_ident()]
        return own or list(recorders)

    def note(
        self, name: str, config: SAEGuardrailConfig, seen: GateHistory | Tensor, cache: Cache | None = None
    ) -> None:
        """Take note of what a guardrail saw in a forward pass.

        Args:
            seen: the request's history, or the last state `[batch, STATE_SIZE]` where there is no cache.
            cache: the cache in which the history is.
        """
        if self._closed or (isinstance(seen, GateHistory) and any(reader is self for reader in seen.readers)):
            return
        call = self._calls[name] = self._calls.get(name, -1) + 1
        number, request = next(self._numbers), _Request(name, config, call, seen)
        self._requests[number] = request
        if isinstance(seen, GateHistory):
            seen.readers.append(self)
            self._unread[number] = request
            if cache is not None and not torch.compiler.is_compiling():
                request.cache = weakref.ref(cache, self._let_go)
        elif self._to is not None:
            self._ended.append(number)
            at_once = seen.device.type == "cpu"  # elsewhere it would wait for the layers before
            if (at_once or len(self._ended) >= MOST_WAITING) and not torch.compiler.is_compiling():
                self._deliver()

    def keep(self, history: GateHistory) -> None:
        """Remember how a request ended whose cache is about to be used for another."""
        for request in list(self._unread.values()):
            if request.seen is history:
                request.end()
        self._deliver()

    def close(self) -> None:
        """The recording is over: what comes after it changes nothing, caches are let go, and what was not sent is.

        Raises:
            Exception: what the sink raised.
            GuardrailError: records were dropped, since the sink had failed for too long.
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
        return self  # of copies of a model, the same recording

    def firings(self) -> list[Firing]:
        """All rows of all requests so far; where there is a sink, those that it has not been sent."""
        read = [firing for request in list(self._requests.values()) for firing in request.rows()]
        return [*self._unsent, *read]

    def _let_go(self, cache: weakref.ref[Cache]) -> None:
        """A request is over, since nobody has its cache any more."""
        self._deliver()

    def _collect(self) -> None:
        """Let go of the histories of requests that are over."""
        for number, request in list(self._unread.items()):
            if request.is_over() and self._unread.pop(number, None) is not None:
                request.end()
                if self._to is not None:
                    self._ended.append(number)

    def _deliver(self) -> None:
        """Send what is known of requests that are over. Called where an answer is on its way, in any thread, and again
        from within a sink: it raises nothing, and waits for nobody who is sending, but has him look once more. What
        could not be sent is kept for the next time, and raises at the end of the recording.
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
    """A live view of a recording, used like a list; see `Firing`."""

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
    """Report what every guardrail on `model` does with every row inside the `with` block.

    Rows are described by their statistic only; no text or token is kept. Calls made by other threads are recorded too,
    except those of a thread that has a recording of its own.

    Args:
        model: a model with guardrails.
        to: where each request's records go when it ends, that is when its cache is dropped or emptied (`generate`
            drops its own before it returns; compiled code does not see it), and what is left at the end of the block,
            even if an error ends it: a `logging.Logger`, a callable that is given each `Firing`, or a file to which
            each is added as a line of JSON. A record that was sent is no longer in the list that the block is given, so
            a server can stay in one block. What fails there while the block runs breaks no answer: it is tried again,
            and raised at the end; of more than 100,000 records that wait the oldest are dropped.

    Example:

    ```python
    with record_firings(model) as firings:
        model.generate(**inputs)
    for firing in firings:
        print(firing.adapter, firing.row, firing.statistic, firing.fired)
    ```

    Raises:
        GuardrailError: there is no guardrail on the model, or `to` is nothing that records can go to; at the end, if
            records were dropped.
    """
    with as_guardrail_error():
        check_module(model)
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "recorders") and hasattr(module, "guard_config")
    ]
    if not layers:
        raise GuardrailError(f"There is no guardrail on this {type(model).__name__}; attach one first.")
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
    """The state `[batch, STATE_SIZE]` as it is now; None of a history that is empty."""
    state = seen.last() if isinstance(seen, GateHistory) else seen
    return None if state is None else state.detach().clone()


def firing_of(name: str, config: SAEGuardrailConfig, call: int, row: int, values: list[float]) -> Firing:
    """The record of a row, of the values of its last state."""
    state = State(*values[:STATE_SIZE])
    fired_at, finite = int(state.fired_at), math.isfinite(state.hits)
    return Firing(
        adapter=name,
        call=call,
        row=row,
        statistic=statistic_of(values, config),
        threshold=config.tau,
        fired=fired_at > 0,
        at_token=fired_at or None,
        evidence=_number(state.hits if finite else state.tokens),
        tokens=int(state.tokens),
        finite=finite,
    )


def _number(value: float) -> float:
    """A count as an int."""
    return int(value) if value.is_integer() else value
