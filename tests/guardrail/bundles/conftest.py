"""Fixtures that these files share."""

import shutil

import pytest
from bundled import lora, with_guards
from zoo import base_model

from sae_unlearn import save_bundle


@pytest.fixture(scope="module", params=["guardrails", "a guardrail and a LoRA"])
def model(request, tmp_path_factory):
    """Not to be changed."""
    root = tmp_path_factory.mktemp("members")
    return with_guards(base_model("llama") if request.param == "guardrails" else lora(), root)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("saved") / "bundle"
    save_bundle(model, root)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """A copy for each test."""
    return shutil.copytree(saved, tmp_path / "bundle")
