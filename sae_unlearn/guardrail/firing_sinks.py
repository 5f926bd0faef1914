"""`Firing`, what a guardrail said of a row, and where such records can go: `logging`, a callable, or JSON lines."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Firing:
    """What one guardrail said of one row of one request. Holds no text and no token.

    Attributes:
        adapter: name of the guardrail.
        call: number of the request within the recording; a `generate` is one request, and so is a plain forward pass.
        row: row of the batch (with beams or several return sequences: of the expanded batch).
        statistic: value of the statistic at the end of the request (its peak for window and cusum); NaN if it is not
            `finite`.
        threshold: what it is compared with.
        fired: whether the guardrail acted, or would have with `action="clamp"`.
        at_token: number of content tokens when it fired; None if it did not.
        hot_tokens: content tokens at which a guarded feature was active; with `evidence="log_ratio"` the sum of what
            the features said at them, in nats.
        tokens: content tokens seen.
        finite: False if the residual stream was NaN or infinite at a content token. The row fires then, whatever else
            it holds; `hot_tokens` is all of its tokens.
    """

    adapter: str
    call: int
    row: int
    statistic: float
    threshold: float
    fired: bool
    at_token: int | None
    hot_tokens: float
    tokens: int
    finite: bool = True


FiringSink = logging.Logger | Callable[[Firing], object] | str | os.PathLike[str]


def send_firings(firings: Iterable[Firing], to: FiringSink) -> None:
    """Send records on. A logger gets those that fired as warnings and the others at level debug, each with the record
    as `firing` among its attributes; a file is opened once and added to.
    """
    if isinstance(to, logging.Logger):
        for firing in firings:
            level = logging.WARNING if firing.fired else logging.DEBUG
            to.log(level, "%s", firing_line(firing), extra={"firing": asdict(firing)})
    elif isinstance(to, (str, os.PathLike)):
        lines = "".join(firing_line(firing) + "\n" for firing in firings)
        with open(to, "a", encoding="utf-8") as file:
            file.write(lines)
    else:
        for firing in firings:
            to(firing)


def firing_line(firing: Firing) -> str:
    """A record as one line of JSON; a statistic that is not finite becomes null."""
    values = {name: value if _sound(value) else None for name, value in asdict(firing).items()}
    return json.dumps(values, allow_nan=False)


def _sound(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
