"""A missing oracle is a skip for a user who runs the tests, and a failure in CI."""

from pathlib import Path

import pytest
from oracles import REQUIRED, oracle, with_package


MISSING = "a_package_that_nobody_has"
SESSIONS = Path(__file__).parents[2] / "noxfile.py"


def test_a_missing_oracle_is_a_skip(monkeypatch):
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=MISSING):
        oracle(MISSING)
    assert with_package(MISSING).args == (True,)
    assert with_package("torch").args == (False,)


def test_where_oracles_are_required_a_missing_one_fails(monkeypatch):
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        oracle(MISSING)
    assert with_package(MISSING).args == (False,)


def test_ci_requires_them():
    assert f'{REQUIRED}="1"' in SESSIONS.read_text().partition("def tests(")[2].partition("@nox")[0]
