"""Settings of all tests: offline, deterministic, quiet; four tiers, and a process per core for a whole tier.

    pytest -m fast              the fast tier: every subject, within `BUDGET` for each test
    pytest -m "fast or broad"   the broad tier: also the tests of `broad_tier.txt`
    pytest                      the full tier: also those marked slow
    pytest --nightly            everything; `-m nightly`: the nightly tests alone

A selection of files runs in one process unless `-n` says otherwise.
"""

import gc
import os
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from tiers import BROAD, TESTS, broad_tier, chosen


sys.path.append(str(TESTS.parent))  # for `benchmarks`; at the end, so that an installed package is tested
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

# Modules of `support/` whose assertions say what they compared.
pytest.register_assert_rewrite(
    "architecture_case",
    "attached",
    "commands",
    "family_equations",
    "fitting",
    "forward_modes",
    "frozen_reference",
    "generation_modes",
    "guarded_calls",
    "html_page",
    "tiny_trainer",
)

BUDGET = 2.0  # seconds of CPU of a test of the fast tier, with the fixtures that it is the first to need
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
    if option.numprocesses:
        if option.dist == "no":
            option.dist = "worksteal"  # neighbors share the fixtures of their module
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


def parameters(item: pytest.Item) -> dict[str, int]:
    """The parameters of a case, with the identity of each value: the cases of a product share the values."""
    return {name: id(value) for name, value in item.callspec.params.items()} if hasattr(item, "callspec") else {}


@cache
def subject(path: Path) -> str:
    """The path of a file of tests below this folder."""
    return path.relative_to(TESTS).as_posix()


@pytest.hookimpl(tryfirst=True)  # before pytest reads `-m`
def pytest_collection_modifyitems(config, items):
    quick = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("nightly"):
            continue
        if item.get_closest_marker("real"):
            item.add_marker("broad")
        else:
            name = f"{subject(item.path)}::{getattr(item, 'originalname', item.name)}"
            quick[name].append(item)
    kept = broad_tier()
    for name, cases in quick.items():
        stay = range(len(cases))
        if kept.get(name, len(cases)) < len(cases):
            stay = chosen([parameters(case) for case in cases], kept[name])
        for i, case in enumerate(cases):
            case.add_marker("fast" if i in stay else "broad")
    if config.option.nightly or "nightly" in config.option.markexpr:
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_collection_finish():
    """Leave what was imported and collected out of garbage collections; accelerate makes one after each training."""
    gc.collect()
    gc.freeze()


def seconds_of_cpu() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    item.cpu_before = seconds_of_cpu()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        report.cpu = seconds_of_cpu() - item.cpu_before
    return report


over_budget: dict[str, float] = {}


def pytest_runtest_logreport(report):
    if getattr(report, "cpu", 0) > BUDGET:
        over_budget[report.nodeid] = report.cpu


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == "fast" and over_budget:
        terminalreporter.section(f"more than {BUDGET} s of CPU: move into {BROAD.name}, or make it cheaper")
        for name, seconds in sorted(over_budget.items(), key=lambda each: -each[1]):
            terminalreporter.line(f"{seconds:6.1f}  {name}")


@pytest.fixture(autouse=True)
def _seed():
    import torch

    # torch.manual_seed also formats the stack, once for each accelerator that is not there, and keeps the text
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A server on this machine in the Hub's place, which `huggingface_hub` asks; see `hub_stand_in`."""
    from hub_stand_in import HubStandIn, point_at

    hub = HubStandIn()
    point_at(hub, monkeypatch, tmp_path / "hub-cache")
    yield hub
    hub.stop()
