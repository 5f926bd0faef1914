"""What was read from JSON, and may be anything."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def read_as(what: str) -> Iterator[None]:
    """Within it, whatever a value that is missing or of another kind raises is a `ValueError`, naming it.

    Args:
        what: that is being read.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"This is no {what}: it has no {error}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"This is no {what}: {error}") from error
