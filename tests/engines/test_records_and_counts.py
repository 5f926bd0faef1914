"""Records by request and the counts of an engine, without an engine."""

import json
import logging

import pytest
import torch
import zoo

from sae_unlearn import GuardrailError
from sae_unlearn.engines.counts import SECONDS, Counts
from sae_unlearn.engines.vllm import records as module
from sae_unlearn.engines.vllm.records import Records
from sae_unlearn.guardrail.gate.decision import State


def config(**fields):
    return zoo.planted_config(layer=1, threshold=0.5, **fields)


def states(hot=0.0, tokens=4.0, fired_at=0.0, count=1):
    """States `[count, S]` of rows with these sums."""
    values = {"hits": hot, "peak": hot / tokens, "tokens": tokens, "fired_at": fired_at}
    row = torch.zeros(count, len(State._fields))
    for name, value in values.items():
        row[:, State._fields.index(name)] = value
    return row


@pytest.fixture
def three():
    """Records of three requests: fired, quiet, and one that chose other guardrails."""
    found = Records()
    found.note("a-1", "guard", config(), states(hot=4.0, fired_at=2.0), 0)
    found.note("b-2", "guard", config(), states(), 0)
    found.note("c-3", "guard", config(), states(hot=4.0, fired_at=2.0), 0, enabled=False)
    return found


def test_records_are_found_by_their_id_and_stay(three):
    for _ in range(2):
        assert list(three.find("a")) == ["a-1"]
        assert not three.find("a-")
        assert list(three.find()) == ["a-1", "b-2", "c-3"]
    three.end(["a-1", "c-3"])
    assert three.find("a")["a-1"]["guard"]["fired"]
    assert not three.find("c")["c-3"]["guard"]["enabled"]
    assert list(three.find(limit=2)) == ["c-3", "b-2"]  # ended ones first, the running is the newest
    assert three.find(limit=0) == {}
    assert list(three.take()) == ["a-1", "c-3", "b-2"]
    assert list(three.find()) == ["b-2"]


def test_requests_are_counted_at_their_end_if_the_guardrail_was_on(three):
    assert three.counts.guardrails == {}
    three.end(["a-1", "b-2", "c-3", "unknown"])
    assert three.counts.guardrails == {"guard": {"action": "clamp", "requests": 2, "fired": 1, "not_finite": 0}}


def test_the_servers_own_check_is_recorded_and_not_counted(tmp_path):
    found = Records(str(tmp_path / "log"))
    found.expect_check("check-secret")
    for name in ("check-secret-0-1-0123abcd", "check-other-0-1-0123abcd"):  # the second of a client
        found.note(name, "guard", config(), states(), 0)
        found.end([name])
    assert list(found.find("check-secret-0-1")) == ["check-secret-0-1-0123abcd"]
    assert list(found.find()) == ["check-other-0-1-0123abcd"]
    assert found.counts.guardrails["guard"]["requests"] == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["request"] == "check-other-0-1-0123abcd"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 5)
    found = Records()
    for number in range(20):
        found.note(str(number), "guard", config(), states(), 0)
        found.end([str(number)])
    assert list(found.find()) == ["15", "16", "17", "18", "19"]
    assert found.counts.guardrails["guard"]["requests"] == 20


def test_the_log_is_one_line_of_json_for_each_request(three, tmp_path):
    found = Records(str(tmp_path / "log"))
    found.note("a-1", "guard", config(action="record"), states(hot=4.0, fired_at=2.0), 0)
    found.end(["a-1"])
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["guardrails"]["guard"]["action"] == "record"


def test_a_log_that_cannot_be_written_is_refused_at_the_start_and_counted_later(tmp_path, caplog):
    with pytest.raises(GuardrailError, match=r"nowhere.*log"):
        Records(str(tmp_path / "nowhere" / "log"))
    found = Records(str(tmp_path / "log"))
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    found.note("a-1", "guard", config(), states(), 0)
    with caplog.at_level(logging.ERROR):
        found.end(["a-1"])
    assert found.counts.errors == {"log": 1}
    assert "cannot be written" in caplog.text
    assert list(found.find()) == ["a-1"]


def test_rows_that_are_not_finite_are_counted():
    found = Records()
    found.note("a", "guard", config(), states(hot=float("nan"), fired_at=1.0), 0)
    found.end(["a"])
    assert found.counts.guardrails["guard"]["not_finite"] == 1
    assert found.take()["a"]["guard"]["statistic"] is None


def test_added_time_is_in_the_bucket_whose_bound_it_does_not_exceed():
    counts = Counts()
    for seconds in (0.0, SECONDS[0], SECONDS[0] * 1.01, SECONDS[-1], SECONDS[-1] * 2):
        counts.add_pass(seconds)
    found = counts.snapshot()
    assert found["seconds"][:2] == [2, 1]
    assert found["seconds"][-2:] == [1, 1]
    assert sum(found["seconds"]) == 5
    counts.add_pass(1.0)
    assert sum(found["seconds"]) == 5  # a copy
    json.dumps(found)
