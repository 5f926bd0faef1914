"""Where records of firings go: `logging`, a callable, JSON lines; and that no text is in them."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from zoo import guarded, token_ids

from sae_unlearn import Firing, record_firings
from sae_unlearn.guardrail.firing_sinks import firing_line


IDS = token_ids(12, 10)
FIELDS = set(Firing.__dataclass_fields__)


@pytest.fixture(scope="module")
def model():
    return guarded("llama").eval()


def recorded(model, to=None):
    with record_firings(model, to=to) as firings, torch.no_grad():
        model(input_ids=IDS)
        model.generate(input_ids=IDS, max_new_tokens=3)
    return list(firings)


def test_a_callable_is_given_every_record(model):
    given = []
    assert recorded(model, given.append) == given
    assert len(given) == 2 * len(IDS)


def test_json_lines_are_added_to_a_file(model, tmp_path):
    path = tmp_path / "firings.jsonl"
    first, second = recorded(model, path), recorded(model, str(path))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [Firing(**fields) for fields in found] == first + second
    assert all(set(fields) == FIELDS for fields in found)


def test_a_logger_gets_warnings_for_what_fired(model, caplog):
    logger = logging.getLogger("tests.firings")
    with caplog.at_level(logging.DEBUG, logger.name):
        firings = recorded(model, logger)
    assert [r.levelno for r in caplog.records] == [logging.WARNING if f.fired else logging.DEBUG for f in firings]
    assert [Firing(**r.firing) for r in caplog.records] == firings
    assert any(f.fired for f in firings)
    assert not all(f.fired for f in firings)


def test_no_token_of_the_text_is_in_a_record(model):
    for firing in recorded(model):
        assert not any(
            isinstance(value, (list, tuple, str)) for name, value in vars(firing).items() if name != "adapter"
        )


def test_what_was_seen_before_an_error_is_sent(model):
    given = []

    def interrupted():
        with record_firings(model, to=given.append), torch.no_grad():
            model(input_ids=IDS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert len(given) == len(IDS)


def test_what_is_not_finite_is_null(model):
    broken = replace(recorded(model)[0], statistic=float("nan"))
    assert json.loads(firing_line(broken))["statistic"] is None
