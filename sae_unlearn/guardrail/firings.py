"""What each row did: `record_firings`."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sae_unlearn.backbone.decoder_layers import check_module
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.firing_sinks import Firing, FiringSink, send_firings
from sae_unlearn.guardrail.gate import FIRED_AT, HITS, PEAK, TOKENS
from sae_unlearn.guardrail.history import GateHistory


class Recorder:
    """Collects what guarded layers saw, and reads it only when asked: recording waits for no device."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._seen: list[tuple[str, SAEGuardrailConfig, Any]] = []
        self._closed = False

    @staticmethod
    def listening(recorders: list["Recorder"]) -> list["Recorder"]:
        """The recorders a call of this thread goes to: those this thread opened, or else all."""
        own = [recorder for recorder in recorders if recorder.thread == threading.get_ident()]
        return own or list(recorders)

    def note(self, name: str, config: SAEGuardrailConfig, seen: Any) -> None:
        """`seen`: the request's `GateHistory`, which goes on being filled, or the last state `[batch, STATE_SIZE]`."""
        if self._closed:
            return
        if isinstance(seen, GateHistory):
            if any(entry is seen for _, _, entry in self._seen):
                return
            seen.readers.append(self)
        self._seen.append((name, config, seen))

    def keep(self, history: GateHistory) -> None:
        """Remember how a request ended whose cache is about to be used for another."""
        self._seen = [(name, config, _state_of(seen) if seen is history else seen) for name, config, seen in self._seen]

    def close(self) -> None:
        """The recording is over: what comes after it changes nothing, and caches are let go."""
        self._closed = True
        for _, _, seen in self._seen:
            if isinstance(seen, GateHistory):
                seen.readers[:] = [reader for reader in seen.readers if reader is not self]
        self._seen = [(name, config, _state_of(seen)) for name, config, seen in self._seen]

    def __deepcopy__(self, memo: Any) -> "Recorder":
        return self  # of copies of a cache or a model, the same recording

    def firings(self) -> list[Firing]:
        """All rows of all requests so far."""
        calls: dict[str, int] = {}
        found = []
        for name, config, seen in self._seen:
            state = _state_of(seen)
            call = calls[name] = calls.get(name, -1) + 1
            if state is not None:
                found += [_firing(name, config, call, row, values) for row, values in enumerate(_rows(state))]
        return found


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
        to: where all of it goes at the end of the block, even if an error ends it: a `logging.Logger`, a callable that
            is given each `Firing`, or a file to which each is added as a line of JSON.

    Example:

    ```python
    with record_firings(model) as firings:
        model.generate(**inputs)
    for firing in firings:
        print(firing.adapter, firing.row, firing.statistic, firing.fired)
    ```

    Raises:
        GuardrailError: there is no guardrail on the model.
    """
    with as_guardrail_error():
        check_module(model)
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "recorders") and hasattr(module, "guard_config")
    ]
    if not layers:
        raise GuardrailError(f"There is no guardrail on this {type(model).__name__}; attach one first.")
    recorder = Recorder()
    for layer in layers:
        layer.recorders.append(recorder)
    try:
        yield Firings(recorder)
    finally:
        for layer in layers:
            layer.recorders.remove(recorder)
        recorder.close()
        if to is not None:
            send_firings(recorder.firings(), to)


def _state_of(seen: GateHistory | Tensor | None) -> Tensor | None:
    """The state `[batch, STATE_SIZE]` as it is now; None of a history that is empty."""
    state = seen.last() if isinstance(seen, GateHistory) else seen
    return None if state is None else state.detach().clone()


def _rows(state: Tensor) -> list[list[float]]:
    return state.float().cpu().tolist()


def _firing(name: str, config: SAEGuardrailConfig, call: int, row: int, values: list[float]) -> Firing:
    fired_at, finite = int(values[FIRED_AT]), math.isfinite(values[HITS])
    return Firing(
        adapter=name,
        call=call,
        row=row,
        statistic=values[PEAK],
        threshold=config.tau,
        fired=fired_at > 0,
        at_token=fired_at or None,
        hot_tokens=_number(values[HITS] if finite else values[TOKENS]),
        tokens=int(values[TOKENS]),
        finite=finite,
    )


def _number(value: float) -> float:
    """A count as an int."""
    return int(value) if value.is_integer() else value
