"""Scenarios of the serving comparisons run once, and are gathered in the results."""

import json

from benchmarks.serving.kept import run_or_write


def test_a_scenario_that_is_there_is_not_run_again(tmp_path):
    ran = []

    def run(folder, scenario):
        ran.append(scenario)
        return {"what": scenario}

    scenarios, results = {"a": 1, "b": 2}, tmp_path / "results.json"
    run_or_write(tmp_path, "kind", scenarios, ["b"], run, results)
    run_or_write(tmp_path, "kind", scenarios, [], run, results)
    assert ran == [2, 1]
    assert not results.exists()
    run_or_write(tmp_path, "kind", scenarios | {"c": 3}, ["--write"], run, results)
    assert json.loads(results.read_text())["scenarios"] == {"a": {"what": 1}, "b": {"what": 2}}
    assert ran == [2, 1]
