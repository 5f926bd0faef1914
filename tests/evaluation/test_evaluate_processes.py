"""Two processes measure what one does, to the last digit."""

import json
from pathlib import Path

import pytest
from evaluated_in_processes import evaluated
from launched import launch
from tiny_topic import save_adapters, tiny_parts, tiny_tokenizer

from sae_unlearn.backbone import distributed as processes
from sae_unlearn.evaluation import Fact, recall, row_losses


SCRIPT = Path(__file__).with_name("evaluated_in_processes.py")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    save_adapters(folder)
    return folder


@pytest.fixture(scope="module")
def two(adapters, tmp_path_factory):
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("two")
    launch(SCRIPT, adapters, out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_give_the_report_of_one(two, adapters):
    one = json.loads(json.dumps(evaluated(adapters)))
    assert {figure["metric"] for report in one.values() for figure in report["figures"]} >= {
        "alias_recall",
        "rouge_l_f1",
        "likelihood_accuracy",
        "letter_accuracy",
        "truth_ratio",
        "perplexity",
        "kl",
        "fires:default",
    }
    for found in two:
        assert found["processes"] == 2
        assert found["reports"] == one


def test_processes_that_are_given_different_rows_are_told(two):
    for found in two:
        assert "forget, retain: expected the same rows in every process" in found["different"]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_runs_its_own_batches_alone(monkeypatch, rank):
    model, rows = tiny_parts()[0], []
    model.register_forward_pre_hook(lambda m, args, kw: rows.append(len(kw["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "process_index", lambda: rank)
    monkeypatch.setattr(processes, "gathered", lambda value: [value])
    found = row_losses(model, tiny_tokenizer(), ["w3 w4 w5"] * 5, batch_size=2, shared=True)
    assert rows == [[2, 1], [2]][rank]
    assert found.ne(0).tolist() == [[True, True, False, False, True], [False, False, True, True, False]][rank]
    assert row_losses(model, tiny_tokenizer(), ["w3 w4 w5"] * 5, batch_size=2).ne(0).all()
    recall(
        model, tiny_tokenizer(), [Fact("w3", ("w4",))] * 3, max_new_tokens=1, batch_size=2
    )  # as long as nobody asks to share, all of it
