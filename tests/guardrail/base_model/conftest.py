"""Fixtures that these files share."""

import pytest
from zoo import guarded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved guardrail."""
    path = tmp_path_factory.mktemp("guard")
    guarded("llama").save_pretrained(path)
    return path
