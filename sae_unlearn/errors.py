"""Error classes of the package. `UnlearnError`, a `ValueError`, is the base of all.

    UnlearnError
        GuardrailError
            BundleGiven          guardrail.storage.bundle_index
            NoAnswer             engines.service
        GuardrailNotReady        also a RuntimeError
        GuardrailUnsupported     also a NotImplementedError
        AlignmentError
        SAEFormatError
        LaunchError              backbone.distributed
        NotPossible              evaluation.audit.attacks.base

A class with a module is defined there, next to the code that raises it. The others are defined here, and are public.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager


_SUBJECT = re.compile(r"([^\s=:,]+(?:, [^\s=:,]+)*)(?:=|: )")


class UnlearnError(ValueError):
    """Input that the package cannot work with. The message names the value and the fix.

    It is a `ValueError`, so code that does not import this package can catch it. Control characters in a message,
    which may quote a downloaded file, are escaped, so they cannot act on a terminal.

    Args:
        message (str, *optional*, defaults to ""): `name=value: expected X, got Y.`, and how to correct it.
    """

    def __init__(self, message: str = "") -> None:
        plain = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(plain))

    @property
    def subject(self) -> str | None:
        """Argument, option, field or file that the message begins with; None without one.

        It is "topk" of "topk='all': expected ...", and "forget, retain" of "forget, retain: expected ...".
        """
        found = _SUBJECT.match(str(self))
        return found[1] if found else None


class GuardrailError(UnlearnError):
    """A guardrail is malformed, does not belong to the model, or cannot work on it."""


class GuardrailNotReady(UnlearnError, RuntimeError):
    """The model was called while an active guardrail cannot work, so the call was stopped.

    Its weights never arrived, or it cannot see what it needs. Letting the call pass would give unguarded text.
    """


class GuardrailUnsupported(UnlearnError, NotImplementedError):
    """A guardrail does not support this use of the model, or not with the installed version of a library."""


@contextmanager
def as_guardrail_error() -> Iterator[None]:
    """Raise each `UnlearnError` of the block as a `GuardrailError`. Also a decorator."""
    try:
        yield
    except (GuardrailError, GuardrailNotReady, GuardrailUnsupported):
        raise
    except UnlearnError as error:
        raise GuardrailError(str(error)) from error


class AlignmentError(UnlearnError):
    """An alignment cannot be trained with these entities, latents or settings."""


class SAEFormatError(UnlearnError):
    """A file or folder does not hold a sparse autoencoder that this package can read exactly.

    The message names the file, the value found, what was expected and the fix.
    """
