"""The benchmarks are scripts beside the package; their modules are found by this."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread, which tiny models run fastest on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
