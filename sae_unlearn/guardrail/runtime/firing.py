"""`Firing`, the record of a row, and its destinations: `logging`, a callable, or JSON lines."""

import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.decision import STATE_SIZE, State, statistic_of


@dataclass(frozen=True)
class Firing:
    """Record of one guardrail about one row of one request, without text and tokens.

    Attributes:
        adapter (str): Name of the guardrail.
        call (int): Number of the request within the recording. A `generate` is one request, and so is a plain forward
            pass.
        row (int): Row of the batch (with beams or several return sequences: of the expanded batch).
        statistic (float): Value of the statistic at the end of the request. NaN if it is not `finite`.
        threshold (float): The gate's threshold.
        fired (bool): The guardrail acted, or would have with `action="clamp"`.
        at_token (int or None): Number of content tokens when it fired. None if it did not.
        evidence (float): Sum over the content tokens of how hot each is: the number of hot tokens, or with
            `feature_evidence` the evidence of the active features in nats.
        tokens (int): Content tokens seen.
        finite (bool, *optional*, defaults to True): False if the residual stream was NaN or infinite at a content
            token. The row fires then, and `evidence` is the number of its tokens.
        request (str, *optional*): Id of the request in `generate_batch`. None for all other calls.
    """

    adapter: str
    call: int
    row: int
    statistic: float
    threshold: float
    fired: bool
    at_token: int | None
    evidence: float
    tokens: int
    finite: bool = True
    request: str | None = None


FiringSink = logging.Logger | Callable[[Firing], object] | str | os.PathLike[str]


def check_sink(to: FiringSink, name: str = "to") -> FiringSink:
    """Return `to` after a check that records can be written to it.

    A file is created, and its path no longer depends on the working directory.

    Args:
        to (FiringSink): Where records go.
        name (str, *optional*, defaults to "to"): What the caller calls it, for errors.

    Raises:
        GuardrailError: If it is of another type, or the file cannot be written.
    """
    if isinstance(to, logging.Logger) or callable(to):
        return to
    if not isinstance(to, (str, os.PathLike)) or not isinstance(os.fspath(to), str):
        raise GuardrailError(f"{name}={to!r:.80}: expected a logging.Logger, a callable, or the name of a file.")
    path = Path(to).expanduser().absolute()
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = getattr(error, "strerror", None) or error
        raise GuardrailError(
            f"{name}={os.fspath(to)!r:.200} cannot be written ({reason}); give a file in a folder that is there and "
            "may be written to."
        ) from error
    return path


def send_firings(firings: deque[Firing], to: FiringSink) -> None:
    """Send records, and remove those that were sent from `firings`.

    A logger gets those that fired as warnings and the others at level debug, each with the record as its attribute
    `firing`. A file is opened once and appended to.
    """
    if isinstance(to, (str, os.PathLike)):
        lines = "".join(firing_line(firing) + "\n" for firing in firings)
        with open(to, "a", encoding="utf-8") as file:
            file.write(lines)
        firings.clear()
    while firings:
        firing = firings[0]
        if isinstance(to, logging.Logger):
            level = logging.WARNING if firing.fired else logging.DEBUG
            to.log(level, "%s", firing_line(firing), extra={"firing": asdict(firing)})
        elif callable(to):
            to(firing)
        firings.popleft()


def firing_line(firing: Firing) -> str:
    """Return a record as one line of JSON. A statistic that is not finite becomes null."""
    values = {name: value if _sound(value) else None for name, value in asdict(firing).items()}
    return json.dumps(values, allow_nan=False)


def _sound(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def firing_of(
    name: str, config: SAEGuardrailConfig, call: int, row: int, values: list[float], request: str | None = None
) -> Firing:
    """Return the record of a row from the values of its last state."""
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
        request=request,
    )


def _number(value: float) -> float:
    """A count as an int."""
    return int(value) if value.is_integer() else value
