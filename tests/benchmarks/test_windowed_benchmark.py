"""The figures of the windowed gate's benchmark against their definitions, and the text gates beside it."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.gates.encoded_rows import Encoded
from benchmarks.gates.text_gates import fit_text_gates, joined, pieces, tfidf_fit
from benchmarks.gates.token_gates import Rowset
from benchmarks.gates.windowed_summary import (
    by_lengths,
    caught_at,
    collected,
    lengths_collected,
    log_auroc,
    over_draws,
    ranked,
)
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures


def test_share_caught_at_a_rate_lets_no_more_others_through():
    topic, other = torch.tensor([1.0, 4.0, 9.0, 9.5]), torch.arange(10.0)
    assert caught_at(topic, other, 0.0) == 0.25  # above 9, the highest
    assert caught_at(topic, other, 0.1) == 0.5  # one other row may exceed the threshold, which is 8
    assert caught_at(topic, other, 0.5) == 0.5
    assert caught_at(topic, other, 0.6) == 0.75


def test_log_auroc_is_the_mean_over_the_logarithm_of_the_rate():
    assert log_auroc(torch.tensor([2.0]), torch.zeros(2000)) == 1
    assert log_auroc(torch.tensor([-1.0]), torch.zeros(2000)) == 0
    # caught from a rate of 1 % on, so over two of the three decades
    other = torch.cat([torch.full((20,), 5.0), torch.zeros(1980)])
    assert log_auroc(torch.tensor([1.0]), other) == pytest.approx(2 / 3, abs=0.01)
    assert ranked(torch.tensor([1.0]), other)["auroc"] == pytest.approx(0.99)


def test_draws_are_summed_up_as_mean_smallest_and_largest():
    figures = {"auroc": 0.9, "log_auroc": 0.5, "at_1": 0.4, "at_01": 0.1, "n": [4, 9]}
    draws = [
        {"fit_s": 1.0, **dict.fromkeys(("rows", "short", "alone"), figures), "fires": {"rows": [[caught, 4], [0, 9]]}}
        for caught in (1, 3)
    ]
    found = over_draws(draws)
    assert found["rows"]["at_1"] == [0.4, 0.4, 0.4]
    assert found["fires"]["rows"] == [{"share": [0.5, 0.25, 0.75], "n": 4}, {"share": [0.0, 0.0, 0.0], "n": 9}]


def test_variants_are_means_over_topics_of_any_size():
    records = [{"lengths": "320", "j": {"fires": {"rows": [[1, n], [0, 0]]}}} for n in (2, 4)]
    assert by_lengths(records) == {"320": {"rows": [0.375, None]}}


def test_lengths_are_summed_up_over_topics_and_draws(tmp_path):
    for topic, draw, fired in (("demo", 0, 4), ("git", 0, 1), ("git", 1, 3), ("sport", 0, 0)):
        records = [
            {"topic": topic, "draw": draw, "lengths": name, "j": {"fires": {"rows": [[fired * times, 8], [0, 9]]}}}
            for name, times in (("320", 2), ("1280", 1))
        ]
        (tmp_path / f"lengths-{topic}-{draw}.json").write_text(json.dumps({"all": records}))
    found = lengths_collected(tmp_path)
    assert found["draws"] == {"demo": 1, "git": 2, "sport": 1}
    assert found["n"]["git"] == {"rows": [8, 9]}
    assert found["demo"] == {"320": {"rows": [1.0, 0.0]}, "1280": {"rows": [0.5, 0.0]}}
    assert found["git"]["1280"]["rows"] == [0.25, 0.0]
    assert found["new topics"]["1280"]["rows"] == [pytest.approx(4 / 24, abs=1e-4), 0.0]
    assert collected(tmp_path)["draws"] == {}


def test_rows_of_an_encoded_set_can_be_chosen():
    rows = [torch.rand(n, 50) * (torch.rand(n, 50) < 0.1) for n in (5, 9, 3, 7)]
    active, tokens = ActiveFeatures.of([row > 0 for row in rows]), torch.cat(rows)
    encoded = Encoded(
        active.lengths,
        active.starts,
        active.features.short(),
        tokens[tokens > 0],
        tokens[:, :4].half(),
        tokens.norm(dim=1),
    )
    some = Rowset(encoded._asdict()).rows([2, 0]).encoded
    expected = torch.cat([rows[2], rows[0]])
    assert torch.equal(some.values, expected[expected > 0])
    assert torch.equal(some.norms, expected.norm(dim=1))
    assert torch.equal(some.residual, expected[:, :4].half())


def texts(words, number, seed):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(words, draw.integers(20, 120))) for _ in range(number)]


def test_a_text_gate_on_pieces_finds_a_piece_amid_others():
    topic = texts(["virus", "cell", "protein", "the", "of"], 40, 0)
    other = texts(["market", "price", "buyer", "the", "of"], 80, 1)
    whole, by_pieces = fit_text_gates(topic, other, tfidf_fit, 0.025)
    alone, amid = "virus cell protein virus", "market " * 640 + "virus cell protein virus"
    for gate in (whole, by_pieces):
        assert gate.score([alone])[0] > gate.threshold
        assert gate.score(["market price buyer"])[0] < gate.threshold
    assert by_pieces.score([amid])[0] > by_pieces.threshold
    assert whole.score([amid])[0] < by_pieces.score([amid])[0]


def test_joined_texts_are_of_one_fold():
    some = [f"{i} " * 30 for i in range(50)]
    for cut in (pieces, partial(lambda text: [text])):
        for i, parts in enumerate(joined(some, cut)):
            numbers = {int(word) for part in parts for word in part.split()}
            assert {n % 4 for n in numbers} == {i % 4}
            assert math.isclose(sum(len(part.split()) for part in parts), 256, abs_tol=30)
