"""How stored bytes are damaged, how many damaged files are tried, and how long one of them may take."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random


CASES = 400 * int(os.environ.get("SAE_UNLEARN_FUZZ", "1"))
SECONDS = 20.0  # for one case, which takes milliseconds


@contextmanager
def in_time(case: object = "this case", seconds: float = SECONDS) -> Iterator[None]:
    """Raise if the block takes longer, with the name of the case; also a decorator. What never comes back to Python
    is ended by pytest's `faulthandler_timeout`."""

    def late(*_: object) -> None:
        raise TimeoutError(f"{case} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def flipped(data: bytes, draw: Random) -> bytes:
    """One to four bits are flipped; half of the time near the start, where the headers are."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(min(len(damaged), 600) if draw.random() < 0.5 else len(damaged))
        damaged[place] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(len(data))]


def grown(data: bytes, draw: Random) -> bytes:
    return data + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 64)))


def overwritten(data: bytes, draw: Random) -> bytes:
    """A run of bytes becomes zeros, ones or noise."""
    start = draw.randrange(len(data))
    run = data[start : start + draw.choice((1, 8, 64, 512))]
    fill = draw.choice((b"\0" * len(run), b"\xff" * len(run), draw.randbytes(len(run))))
    return data[:start] + fill + data[start + len(run) :]


def swapped(data: bytes, draw: Random) -> bytes:
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[b:] + data[a:b] + data[:a]


DAMAGE = {"flipped": flipped, "cut": cut, "grown": grown, "overwritten": overwritten, "swapped": swapped}
