"""Training of an SAE in two real processes: the file of one, one process that trains, and an end in every case."""

import json

import pytest
import torch
from launched import TORCHRUN, launch
from oracles import oracle
from tiny_topic import save_parts, topic_texts

from sae_unlearn.cli.main import main
from sae_unlearn.sae import SparseAutoencoder


TEXTS = topic_texts("retain", 150, words=24) + topic_texts("forget", 50, words=24)
SCRIPT = """
import sys
from accelerate import PartialState
from sae_unlearn.backbone.distributed import by_first, gathered, process_index
PartialState(cpu=True)
assert by_first(lambda: process_index() + 5) == 5
def work():
    raise ValueError("the disk is full")
try:
    by_first(work)
except Exception as error:
    print(process_index(), type(error).__name__, error, flush=True)
assert gathered(process_index()) == [0, 1]  # the launch's own group goes on
"""


@pytest.mark.slow
def test_one_process_works_and_all_have_its_result_or_its_error(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    out, _ = launch(tmp_path / "script.py", launcher=TORCHRUN)
    shown = sorted(line for line in out.splitlines() if "disk" in line)
    assert shown == [
        "0 ValueError the disk is full",
        "1 LaunchError Process 0 of this launch has ended or cannot be reached (the disk is full). Read that process's "
        "own error.",
    ]


@pytest.mark.slow
def test_two_processes_write_the_sae_of_one(tmp_path):
    oracle("sae_lens")
    save_parts(tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    given = ["train-sae", "--model", tmp_path / "model", "--texts", tmp_path / "texts.txt", "--context", "16"]
    given += ["--batch-size", "64", "--d-sae", "64", "--active-features", "8", "--layer", "1", "--rows-per-pass", "4"]
    given = [str(part) for part in [*given, "--epochs", "1", "--no-progress", "--output"]]
    out, _ = launch("-m", "sae_unlearn", *given, tmp_path / "two")
    assert out.count("SAE of layer 1") == out.count("loss recovered") == out.count("Written to") == 1
    assert main([*given, str(tmp_path / "one")]) == 0
    one, two = (SparseAutoencoder.from_pretrained(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two.W_enc, one.W_enc, rtol=1e-3, atol=1e-4)
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert second["training"]["tokens"] == first["training"]["tokens"]
    assert second["held_out"]["tokens"] == first["held_out"]["tokens"]
    assert not (tmp_path / "two-work").exists()
