"""The errors a guardrail raises."""


class GuardrailError(ValueError):
    """A guardrail that is malformed, does not belong to the model, or could not do its work there.

    It is a `ValueError`, so that code which knows nothing of this package can catch it.
    """


class GuardrailNotReady(RuntimeError):
    """The model was called while a guardrail on it cannot work: its weights never arrived, or it cannot see what it
    needs. The call is stopped, since letting it pass would give unguarded text."""
