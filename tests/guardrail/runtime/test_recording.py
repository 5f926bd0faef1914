"""Where records of firings go: `logging`, a callable, JSON lines; and that no text is in them."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, StaticCache
from zoo import guarded, token_ids, with_cache

from sae_unlearn import Firing, GuardrailError, record_firings
from sae_unlearn.guardrail.runtime import recording as firings_module
from sae_unlearn.guardrail.runtime.firing import firing_line
from sae_unlearn.guardrail.runtime.gate_history import GateHistory
from sae_unlearn.guardrail.runtime.recording import Recorder


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
    assert recorded(model, given.append) == []
    assert given == recorded(model)
    assert len(given) == 2 * len(IDS)


def test_json_lines_are_added_to_a_file(model, tmp_path):
    path = tmp_path / "firings.jsonl"
    recorded(model, path), recorded(model, str(path))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [Firing(**fields) for fields in found] == 2 * recorded(model)
    assert all(set(fields) == FIELDS for fields in found)


def test_a_logger_gets_warnings_for_what_fired(model, caplog):
    logger = logging.getLogger("tests.firings")
    with caplog.at_level(logging.DEBUG, logger.name):
        recorded(model, logger)
    firings = recorded(model)
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
            assert len(firings) == len(IDS)
            del out
            assert count() == 3 * len(IDS)
            assert len(firings) == 0
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


def kept(firings):
    """How many requests, and of them how many histories, a recording holds."""
    recorder = firings._recorder
    requests = [*recorder._requests.values(), *recorder._unread.values()]
    return len(recorder._requests), sum(isinstance(request.seen, GateHistory) for request in requests)


def request(model, kind):
    if kind == "no cache":
        model(input_ids=IDS[:2], use_cache=False)
    else:
        cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=16)
        model(input_ids=IDS[:2], **with_cache(model, cache))
        if kind == "emptied":
            cache.reset()


@pytest.mark.parametrize("kind", ["no cache", "dynamic", "static", "emptied"])
@pytest.mark.parametrize("serving", [True, False])
def test_a_block_without_an_end_holds_what_is_asked_for_and_no_more(model, kind, serving):
    given = []
    with record_firings(model, to=given.append if serving else None) as firings, torch.no_grad():
        for _ in range(20):
            request(model, kind)
        assert kept(firings) == (0 if serving else 20, 0)
        assert len(firings) == (0 if serving else 40)
        assert len(firings._recorder._unsent) == 0
    assert len(given) == (40 if serving else 0)


def test_a_pass_looks_at_no_earlier_request(model):
    with record_firings(model) as firings, torch.no_grad():
        caches = [DynamicCache() for _ in range(5)]
        for cache in caches:
            model(input_ids=IDS[:2], **with_cache(model, cache))
        recorder = firings._recorder
        held, waiting = recorder._requests, recorder._unread
        recorder._requests, recorder._unread = Unlookable(held), Unlookable(waiting)
        try:
            for cache in caches:
                model(input_ids=IDS[:2], **with_cache(model, cache))
        finally:
            recorder._requests, recorder._unread = held, waiting
    assert len(firings) == 10


class Unlookable(dict):
    def values(self):
        pytest.fail("a pass went through all requests")

    __iter__ = items = keys = values


def test_a_copy_of_a_cache_is_another_request(model):
    with record_firings(model) as firings, torch.no_grad():
        cache = model(input_ids=IDS[:2]).past_key_values
        other = copy.deepcopy(cache)
        model(input_ids=IDS[:2], **with_cache(model, other))
        model(input_ids=IDS[:2], **with_cache(model, cache))
    assert [(firing.call, firing.tokens) for firing in firings] == [(0, 20)] * 2 + [(1, 20)] * 2


def test_of_requests_without_a_cache_on_a_device_not_all_wait_to_the_end(model, monkeypatch):
    given, states = [], torch.ones(2, 9)
    config = model.peft_config["default"]
    monkeypatch.setattr(firings_module, "MOST_WAITING", 4)
    recorder = Recorder(given.append)
    for n in range(10):
        recorder.note("default", config, states.as_subclass(Elsewhere))
        assert len(given) == 2 * (n + 1 - (n + 1) % 4)
    recorder.close()
    assert len(given) == 20


class Elsewhere(torch.Tensor):
    """A tensor that says of itself that it lies on a GPU."""

    device = torch.device("cuda", 0)


def test_what_a_broken_sink_leaves_is_bounded_and_what_is_dropped_is_said(model, monkeypatch):
    monkeypatch.setattr(firings_module, "MOST_UNSENT", 5)
    given, works = [], []

    def fragile(firing):
        if not works:
            raise OSError("the disk is full")
        given.append(firing)

    def serving():
        with record_firings(model, to=fragile) as firings, torch.no_grad():
            for _ in range(4):
                request(model, "dynamic")
            assert len(firings) == 5
            works.append(True)

    with pytest.raises(GuardrailError, match=r"^to=.*: 3 records"):
        serving()
    assert [firing.call for firing in given] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (123, r"^to=123: .*logging\.Logger"),
        (b"firings.jsonl", "to=b'firings.jsonl': expected"),
        (
            "{here}/no/x.jsonl",
            r"to='{here}/no/x.jsonl' .*\(No such file or directory\)",
        ),
        ("{here}", r"to='{here}' .*\(Is a directory\)"),
        ("nul\0", "to="),
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
        assert list(firings) == []
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
