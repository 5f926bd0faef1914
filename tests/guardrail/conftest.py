"""The fixture that tests of fitting share; what it is made of is in `fitting`."""

import pytest


pytest.register_assert_rewrite("fitting")


@pytest.fixture(scope="module")
def usual():
    """A model with a guardrail fitted to it in the usual way; not to be changed."""
    from fitting import fit

    return fit()
