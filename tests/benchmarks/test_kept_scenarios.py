"""Scenarios of the serving comparisons run once, are gathered in the results, and say whether all was equal."""

import json

import pytest

from benchmarks.serving.kept import run_or_write


def found(adapter="clamp", **counts):
    return {"adapter": adapter, "runs": [{"prompts": 34, "tokens": 34, "records": 34} | counts]}


def test_a_scenario_that_is_there_is_not_run_again(tmp_path):
    ran = []

    def run(folder, scenario):
        ran.append(scenario)
        return found(what=scenario)

    scenarios, results = {"a": 1, "b": 2}, tmp_path / "results.json"
    run_or_write(tmp_path, "kind", scenarios, ["b"], run, results)
    run_or_write(tmp_path, "kind", scenarios, [], run, results)
    assert ran == [2, 1]
    assert not results.exists()
    run_or_write(tmp_path, "kind", scenarios | {"c": 3}, ["--write"], run, results)
    assert json.loads(results.read_text())["scenarios"] == {"a": found(what=1), "b": found(what=2)}
    assert ran == [2, 1]


@pytest.mark.parametrize(
    ("adapter", "counts", "equal"),
    [
        ("clamp", {}, True),
        ("clamp", {"tokens": 33}, False),
        ("clamp", {"records": 33}, False),
        ("none", {"records": None}, True),
        ("none", {"tokens": 33, "records": None}, False),
    ],
)
def test_a_difference_is_returned(tmp_path, adapter, counts, equal):
    scenarios = {"a": found(adapter, **counts), "b": found()}
    assert run_or_write(tmp_path, "kind", scenarios, [], lambda _, scenario: scenario, tmp_path / "none") is equal
