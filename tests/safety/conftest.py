"""Fixtures that the tests of safety share."""

import pytest


@pytest.fixture(scope="session")
def expected():
    """Logits with the guardrail, and without."""
    from guarded_calls import logits
    from zoo import base_model, guarded

    return logits(guarded("llama")), logits(base_model("llama"))
