"""Where records of firings go: `logging`, a callable, JSON lines; and that no text is in them."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, StaticCache
from zoo import guarded, token_ids, with_cache

from sae_unlearn import Firing, GuardrailError, record_firings
from sae_unlearn.guardrail.runtime.firing import firing_line


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


def lines(path):
    return len(path.read_text().splitlines())


def test_a_record_is_sent_when_its_request_ends(model, tmp_path, caplog):
    given, path, logger = [], tmp_path / "firings.jsonl", logging.getLogger("tests.firings")
    sinks = {given.append: lambda: len(given), path: lambda: lines(path), logger: lambda: len(caplog.records)}
    for to, count in sinks.items():
        with caplog.at_level(logging.DEBUG, logger.name), record_firings(model, to=to) as firings, torch.no_grad():
            for n in (1, 2):
                model.generate(input_ids=IDS, max_new_tokens=3)
                assert count() == n * len(IDS)
            out = model(input_ids=IDS)
            assert count() == 2 * len(IDS)  # whoever has the cache can go on
            del out
            assert count() == len(firings) == 3 * len(IDS)
        assert count() == 3 * len(IDS)


def test_a_request_goes_on_as_long_as_somebody_has_its_cache(model):
    given, cache = [], DynamicCache(config=model.config)
    with record_firings(model, to=given.append), torch.no_grad():
        for part in IDS.split(4, dim=1):
            model(input_ids=part, **with_cache(model, cache))
            model(input_ids=IDS[:1], use_cache=False)  # another request meanwhile
        assert [(firing.call, firing.row) for firing in given] == [(1, 0), (2, 0), (3, 0)]
        del cache
    assert [(firing.call, firing.row) for firing in given[3:]] == [(0, row) for row in range(len(IDS))]
    assert [firing.tokens for firing in given[3:]] == [firing.tokens for firing in recorded(model)[: len(IDS)]]


def test_a_cache_that_is_emptied_ends_a_request(model):
    given, cache = [], StaticCache(config=model.config, max_cache_len=16)
    with record_firings(model, to=given.append), torch.no_grad():
        for n in (0, 1):
            model(input_ids=IDS, **with_cache(model, cache))
            assert len(given) == n * len(IDS)
            cache.reset()
            assert len(given) == (n + 1) * len(IDS)
    assert [firing.call for firing in given] == [0] * len(IDS) + [1] * len(IDS)
    assert recorded(model)[0].statistic == pytest.approx(given[0].statistic)


def test_what_was_sent_is_held_on_the_device_no_longer(model):
    with record_firings(model, to=print) as firings, torch.no_grad():
        model.generate(input_ids=IDS, max_new_tokens=3)
        (request,) = firings._recorder._requests
        assert request.seen is None
        assert len(request.records) == len(firings) == len(IDS)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (123, "to=123; expected a logging.Logger, a callable, or the name of a file"),
        (b"firings.jsonl", "to=b'firings.jsonl'; expected"),
        (
            "{here}/no/x.jsonl",
            r"to='{here}/no/x.jsonl' cannot be written \(No such file or directory\); give a file in",
        ),
        ("{here}", r"to='{here}' cannot be written \(Is a directory\)"),
        ("nul\0", "cannot be written"),
    ],
)
def test_where_nothing_can_go_is_said_before_anything_is_generated(model, tmp_path, to, said):
    to, said = (text.format(here=tmp_path) if isinstance(text, str) else text for text in (to, said))
    with pytest.raises(GuardrailError, match=said), record_firings(model, to=to):
        pytest.fail("the block was entered")
    assert all(not module.recorders for module in model.modules() if hasattr(module, "recorders"))


def test_a_file_is_where_it_was_at_the_start(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with record_firings(model, to="firings.jsonl"), torch.no_grad():
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        model.generate(input_ids=IDS, max_new_tokens=3)
    assert lines(tmp_path / "firings.jsonl") == len(IDS)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_sink_that_fails_breaks_no_answer_and_is_tried_again(model, caplog):
    given, works = [], [False, True]

    def fragile(firing):
        if not works[0]:
            works.reverse()
            raise OSError("the disk is full")
        given.append(firing)

    with record_firings(model, to=fragile) as firings, torch.no_grad():
        answer = model.generate(input_ids=IDS, max_new_tokens=3)
        assert given == []
        assert "the disk is full" in caplog.text
        model.generate(input_ids=IDS, max_new_tokens=3)
        assert given == list(firings)
    assert answer.shape == (len(IDS), IDS.shape[1] + 3)
    assert len(given) == 2 * len(IDS)


def test_a_sink_that_fails_to_the_end_is_said_at_the_end(model):
    def broken(firing):
        raise OSError("the disk is full")

    def serving():
        with record_firings(model, to=broken) as firings, torch.no_grad():
            answers.append(model.generate(input_ids=IDS, max_new_tokens=3))
            kept.append(firings)

    answers, kept = [], []
    with pytest.raises(OSError, match="the disk is full"):
        serving()
    assert len(answers) == 1
    assert len(kept[0]) == len(IDS)


def test_what_is_not_finite_is_null(model):
    broken = replace(recorded(model)[0], statistic=float("nan"))
    assert json.loads(firing_line(broken))["statistic"] is None
