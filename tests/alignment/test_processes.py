"""Two processes label and train what one does."""

import json
from pathlib import Path

import pytest
import torch
from aligned_in_processes import align
from labelled_in_processes import labelled
from launched import launch


SCRIPT = Path(__file__).with_name("aligned_in_processes.py")
COMPARED = {"loss", "grad_norm", "toward", "away", "mse", "kl", "eval_loss", "eval_toward", "eval_kl", "eval_known_auc"}


def test_two_processes_label_as_one_does_and_write_one_cache(tmp_path):
    launch(SCRIPT.with_name("labelled_in_processes.py"), str(tmp_path))
    one = labelled()
    assert one["known"]
    assert one["dropped"] or one["unknown"]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == one | {"processes": 2}
    lines = (tmp_path / "cache.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(one["answers"])
    assert sorted(lines[1:]) == sorted(line.rstrip("\n") for line in one["answers"])


def test_two_processes_give_the_weights_and_the_logs_of_one(tmp_path):
    out = tmp_path / "two.pt"
    launch(SCRIPT, str(out), "2")
    one, two = align(tmp_path / "one.pt", 4), torch.load(out)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, atol=1e-6, rtol=0)
    pairs = list(zip(one["logs"], two["logs"], strict=True))
    assert sum("kl" in a for a, _ in pairs) == 4
    for a, b in pairs:
        shared = a.keys() & COMPARED
        assert {k: b[k] for k in shared} == pytest.approx({k: a[k] for k in shared}, rel=1e-3, abs=1e-5)
