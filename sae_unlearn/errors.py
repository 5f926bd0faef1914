"""The error that every part of this package raises for input that it cannot work with.

The errors a guardrail raises.

The error that alignment raises.

The error that a malformed or unsupported SAE file raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UnlearnError(ValueError):
    """Something given does not fit: the message names the value and the mend.

    It is a `ValueError`, so that code which knows nothing of this package can catch it. What a message quotes of a file
    that anybody may have written is shown by its escapes where a terminal would act on it.
    """

    def __init__(self, message: str = "") -> None:
        plain = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(plain))


class GuardrailError(UnlearnError):
    """A guardrail that is malformed, does not belong to the model, or could not do its work there."""


class GuardrailNotReady(UnlearnError, RuntimeError):
    """The model was called while a guardrail on it cannot work: its weights never arrived, or it cannot see what it
    needs. The call is stopped, since letting it pass would give unguarded text."""


class GuardrailUnsupported(UnlearnError, NotImplementedError):
    """The model was called in a way in which a guardrail cannot work, or that needs another version of transformers."""


@contextmanager
def as_guardrail_error() -> Iterator[None]:
    """What the layers below refuse is raised as a `GuardrailError`; also a decorator."""
    try:
        yield
    except (GuardrailError, GuardrailNotReady, GuardrailUnsupported):
        raise
    except UnlearnError as error:
        raise GuardrailError(str(error)) from error


class AlignmentError(UnlearnError):
    """Entities, latents or settings that an alignment cannot be trained with."""


class SAEFormatError(UnlearnError):
    """A file or folder does not hold a sparse autoencoder that this library can read exactly.

    The message names the file, the value found, what was expected and the mend.
    """
