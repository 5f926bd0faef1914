"""What the benchmarks make of times: arms in turns, ratios round by round, and their spread."""

import numpy as np
import pytest

from benchmarks.speed import timing
from benchmarks.speed.timing import Results, compare, interleaved, times_less


def test_every_arm_runs_once_in_every_round_in_an_order_drawn_anew(monkeypatch):
    ran = []
    monkeypatch.setattr(timing, "timed", lambda call, clock: call() or float(len(ran)))
    times = interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, 0.0, least=8, warmup=1)
    rounds = [ran[i : i + 3] for i in range(0, len(ran), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds[1:]}) > 1
    assert {len(values) for values in times.values()} == {8}
    order = np.array([times[name] for name in "abc"])
    assert (order.max(axis=0) - order.min(axis=0) == 2).all()  # entry i of all arms is of the same round


def test_a_ratio_is_of_the_same_round_and_has_its_spread():
    """The machine grows ten times slower on the way: each round's ratio is 2 all the same."""
    base = np.linspace(1.0, 10.0, 40)
    found = compare({"base": base, "arm": 2 * base}, "arm", "base")
    assert found["ratio"] == found["ratio_low"] == found["ratio_high"] == 2.0
    assert found["added_ms_low"] < found["added_ms"] == 5500.0 < found["added_ms_high"]


def test_how_many_times_less_is_unbounded_where_the_cheap_arm_may_add_nothing():
    noise = np.tile([0.5, -0.5], 20)
    times = {"base": np.ones(40), "cheap": 1 + noise, "dear": np.full(40, 3.0), "sure": np.full(40, 1.1)}
    assert times_less(times, "sure", "dear", "base")["times_less"] == pytest.approx(20)
    assert times_less(times, "cheap", "dear", "base")["high"] == float("inf")


def test_results_of_other_settings_are_not_mixed(tmp_path):
    Results(tmp_path / "r.json", {"model": "a"}).add("cell", {"x": 1})
    assert Results(tmp_path / "r.json", {"model": "a"}).cells == {"cell": {"x": 1}}
    with pytest.raises(SystemExit, match="other settings"):
        Results(tmp_path / "r.json", {"model": "b"})
