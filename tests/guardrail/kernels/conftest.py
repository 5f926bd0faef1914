"""Fixtures that these files share. Nothing of the package is imported here: one file sets up Triton before that."""

import pytest


@pytest.fixture
def steps(monkeypatch):
    """How often the step served: one entry for each time."""
    from step_cases import counted

    from sae_unlearn.guardrail.kernels import cpu_step as host
    from sae_unlearn.guardrail.kernels import dispatch as step_choice

    step, calls = counted(host.host_step)
    monkeypatch.setattr(step_choice, "host_step", step)
    return calls
