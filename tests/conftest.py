"""Settings of all tests: offline, deterministic, quiet; three tiers, and a process per core for a whole tier.

    pytest                  the full tier: all but the nightly tests
    pytest -m fast          the fast tier: whatever is marked neither slow nor nightly
    pytest -m nightly       the nightly tests alone
    pytest --nightly        everything

A selection of files runs in one process unless `-n` says otherwise.
"""

import os
import sys
from pathlib import Path

import pytest


TESTS = Path(__file__).resolve().parent
sys.path.append(str(TESTS.parent))  # for `benchmarks`; at the end, so that an installed package is tested
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

# Modules of `support/` whose assertions say what they compared.
pytest.register_assert_rewrite(
    "architecture_case",
    "attached",
    "commands",
    "fitting",
    "forward_modes",
    "generation_modes",
    "guarded_calls",
    "tiny_trainer",
)

MOST_PROCESSES = 8
MEMORY_OF_A_PROCESS = 3 * 2**30  # bytes


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, too")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its own options
def pytest_cmdline_main(config):
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of those processes: it must start none
        return
    option = config.option
    if not config.pluginmanager.has_plugin("xdist") or option.usepdb or option.capture == "no":
        return
    whole = all(Path(arg).resolve() in (TESTS, TESTS.parent) for arg in config.args)
    if whole and option.numprocesses is None and not option.tx:
        option.numprocesses = processes()
        option.dist = "worksteal"  # neighbors share the fixtures of their module
    if option.numprocesses:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each process; more would compete for the same cores


def processes() -> int:
    """Number of processes for a whole tier, 0 for this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        cores = min(cores, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY_OF_A_PROCESS)
    found = min(cores, MOST_PROCESSES)
    return found if found > 1 else 0


def pytest_configure(config):
    if config.getoption("dist", "no") != "no":
        return  # only hands out the tests, and needs no torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.hookimpl(tryfirst=True)  # before pytest reads `-m`
def pytest_collection_modifyitems(config, items):
    for item in items:
        if not item.get_closest_marker("slow") and not item.get_closest_marker("nightly"):
            item.add_marker("fast")
    if config.option.nightly or "nightly" in config.option.markexpr:
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A server on this machine in the Hub's place, which `huggingface_hub` asks; see `hub_stand_in`."""
    from hub_stand_in import HubStandIn, point_at

    hub = HubStandIn()
    point_at(hub, monkeypatch, tmp_path / "hub-cache")
    yield hub
    hub.stop()
