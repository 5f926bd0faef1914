"""Fixtures that several files share; what `usual` is made of is in `fitting`."""

import pytest


pytest.register_assert_rewrite("fitting")


@pytest.fixture(scope="module")
def usual():
    """A model with a guardrail fitted to it in the usual way; not to be changed."""
    from fitting import fit

    return fit()


@pytest.fixture
def by_operators(monkeypatch):
    """A function that leaves every step on the CPU to torch's operators from then on."""
    from sae_unlearn.guardrail.kernels import dispatch as step_choice

    return lambda: monkeypatch.setattr(step_choice, "on_host", lambda hidden: False)
