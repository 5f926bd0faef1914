"""Settings of all tests: offline, deterministic, quiet."""

import os
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks`; at the end, so that an installed package is tested
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
import transformers


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A server on this machine in the Hub's place, which `huggingface_hub` asks; see `hub_stand_in`."""
    from hub_stand_in import HubStandIn, point_at

    hub = HubStandIn()
    point_at(hub, monkeypatch, tmp_path / "hub-cache")
    yield hub
    hub.stop()
