"""Engines of vLLM in this process; without vLLM, the folder is skipped by name."""

import pytest


pytest.importorskip("vllm", reason="vllm is not installed; `nox -s vllm` makes an environment with it")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder for tiny models and guardrails, with those that most tests use."""
    import served

    folder = tmp_path_factory.mktemp("served")
    model = served.save_model(folder, "gemma3")
    served.save_guardrail(folder, model)
    return folder
