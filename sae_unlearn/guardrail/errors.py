"""The errors a guardrail raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from sae_unlearn.errors import UnlearnError


class GuardrailError(UnlearnError):
    """A guardrail that is malformed, does not belong to the model, or could not do its work there."""


class GuardrailNotReady(UnlearnError, RuntimeError):
    """The model was called while a guardrail on it cannot work: its weights never arrived, or it cannot see what it
    needs. The call is stopped, since letting it pass would give unguarded text."""


@contextmanager
def as_guardrail_error() -> Iterator[None]:
    """What the layers below refuse is raised as a `GuardrailError`; also a decorator."""
    try:
        yield
    except (GuardrailError, GuardrailNotReady):
        raise
    except UnlearnError as error:
        raise GuardrailError(str(error)) from error
