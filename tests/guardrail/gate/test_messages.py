"""The gate of a conversation, against a slow transcription of its definition, and on models."""

import random

import pytest
import torch
from forward_calls import GREEDY, firings_of
from test_gate import cuts, random_rows
from transformers.generation.configuration_utils import CompileConfig
from zoo import BOS, EOS, PAD, base_model, guarded, padded, planted_config, token_ids

from sae_unlearn import GuardrailError, attach_guardrail
from sae_unlearn.guardrail.gate.decision import State, decide, row_statistic
from sae_unlearn.guardrail.summary import guardrail_facts


TURN = 7  # a token that ends a message
MESSAGES = {"boundary_ids": [TURN], "special_ids": [PAD, BOS, EOS, TURN]}


def slow_values(hot, counted, ends, min_tokens):
    """`S_t` after each token: the largest share of hot tokens of the messages so far and of the row."""
    found, ended, message, row = [], [], [], []
    for h, c, end in zip(hot, counted, ends, strict=True):
        message.append((h, c))
        row.append((h, c))
        shares = [sum(h for h, _ in part) / max(sum(c for _, c in part), min_tokens) for part in (message, row)]
        found.append(max([*shares, *ended]))
        if end:
            ended.append(shares[0])
            message = []
    return found


def some_ends(counted, seed):
    """Boundaries among the tokens, some of them counted: a config may name any token."""
    rng = random.Random(seed)
    return torch.tensor([[rng.random() < 0.25 for _ in row] for row in counted.tolist()])


@pytest.mark.parametrize("min_tokens", [1, 3, 8])
def test_the_statistic_is_the_definition_however_the_sequence_is_cut(min_tokens):
    cfg, both = planted_config(threshold=0.375, min_tokens=min_tokens, gate_scope="prefix", **MESSAGES), set()
    for seed in range(6):
        hot, counted = random_rows(seed)
        ends = some_ends(counted, seed)
        rows = zip(hot.tolist(), counted.tolist(), ends.tolist(), strict=True)
        expected = torch.tensor([slow_values(*row, min_tokens) for row in rows])
        for pieces in ([(0, 17)], cuts(17, seed), [(t, t + 1) for t in range(17)]):
            state, values, fires = None, [], []
            for start, stop in pieces:
                part = [tensor[:, start:stop] for tensor in (hot, counted)]
                decision = decide(*part, cfg, state, ends=ends[:, start:stop])
                state = decision.state[:, -1]
                values.append(State.of(decision.state).peak)
                fires.append(decision.fire)
            assert torch.equal(torch.cat(values, dim=1), expected)
            assert torch.equal(torch.cat(fires, dim=1), (expected > 0.375).cummax(dim=1).values)
        assert torch.equal(row_statistic(hot, counted, cfg, ends), expected.amax(dim=1))
        at_end = planted_config(threshold=0.375, min_tokens=min_tokens, **MESSAGES)
        assert torch.equal(row_statistic(hot, counted, at_end, ends), expected[:, -1])
        both |= set((expected > 0.375).flatten().tolist())
    assert both == {True, False}


def test_a_long_message_does_not_dilute_a_short_one_and_boundaries_hide_nothing():
    cfg = planted_config(threshold=0.5, min_tokens=8, **MESSAGES)

    def fires(text):  # h: hot, q: quiet, |: boundary
        hot, counted, ends = (torch.tensor([[c in of for c in text]]) for of in ("h", "hq", "|"))
        with_messages = bool(decide(hot, counted, cfg, ends=ends).fire.any())
        return with_messages, bool(decide(hot, counted, cfg).fire.any())

    assert fires("q" * 40 + "|" + "h" * 8 + "|q") == (True, False)
    assert fires("|".join("h" * 12)) == (True, True)
    assert fires("|".join("q" * 12) + "|hhq") == (False, False)


def test_a_token_that_is_not_finite_fires_the_row_wherever_it_stands():
    cfg = planted_config(threshold=0.5, min_tokens=8, **MESSAGES)
    hits = torch.zeros(1, 12)
    hits[0, 2] = torch.nan
    for at in (1, 2, 3, 11):
        ends = torch.zeros(1, 12, dtype=torch.bool)
        ends[0, at] = True
        assert decide(hits, torch.ones_like(ends), cfg, ends=ends).fire.all()


def conversations():
    """Rows of several lengths, with boundaries among their tokens."""
    rows = [token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15, 9, 5)]
    for i, row in enumerate(rows):
        row[2 + i % 2 :: 4] = TURN
    return rows


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "falcon_h1"])
def test_records_of_a_batch_are_those_of_its_rows_bit_for_bit(architecture):
    model, rows = guarded(architecture, threshold=0.55, min_tokens=4, **MESSAGES), conversations()
    without = guarded(architecture, threshold=0.55, min_tokens=4, special_ids=MESSAGES["special_ids"])

    def facts(firings):
        return [(f.statistic, f.fired, f.at_token, f.evidence, f.tokens) for f in firings]

    def singles(guard):
        return facts([firings_of(guard, lambda row=row: guard(input_ids=row[None]))[0] for row in rows])

    expected = singles(model)
    assert expected != singles(without)
    for side in ("left", "right"):
        assert facts(firings_of(model, lambda side=side: model(**padded(rows, side)))) == expected


def test_generation_with_a_cache_is_generation_without_where_each_token_is_judged_by_its_prefix():
    model = guarded("llama", threshold=0.8, gate_scope="prefix", min_tokens=4, **MESSAGES)
    batch, out = padded(conversations()), []
    cached = firings_of(model, lambda: out.append(model.generate(**batch, **GREEDY)))
    uncached = firings_of(model, lambda: out.append(model.generate(**batch, **GREEDY, use_cache=False)))
    assert torch.equal(*out)
    assert [f.statistic for f in cached] == [f.statistic for f in uncached[-6:]]
    assert {f.fired for f in cached} == {True, False}


@pytest.mark.slow
@pytest.mark.usefixtures("compiles")
def test_compiled_static_cache_generation_is_the_same():
    model, batch = guarded("llama", threshold=0.6, min_tokens=4, **MESSAGES), padded(conversations())
    settings = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    torch._dynamo.reset()
    compiled = model.generate(**batch, **GREEDY, cache_implementation="static", compile_config=settings)
    assert torch.equal(model.generate(**batch, **GREEDY), compiled)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"counting": "columns"}, "counting='columns'"),
        ({"sticky": False}, "sticky=False"),
        ({"boundary_ids": 7}, "tokens.boundary_ids=7"),
        ({"boundary_ids": [-1]}, "boundary_ids=-1"),
        ({"boundary_ids": [True]}, "boundary_ids=True"),
    ],
)
def test_boundaries_that_cannot_work_are_refused(fields, match):
    with pytest.raises(GuardrailError, match=match):
        planted_config(**(MESSAGES | fields))


def test_boundaries_are_saved_and_loaded(tmp_path):
    model = guarded("llama", threshold=0.6, min_tokens=4, **MESSAGES)
    model.save_pretrained(tmp_path)
    assert "each message by itself" in guardrail_facts(model.peft_config["default"], [-1.0])["gate"]
    loaded = attach_guardrail(base_model("llama"), tmp_path)
    batch = padded(conversations())
    loaded.save_pretrained(tmp_path / "again")
    assert "message by message" in (tmp_path / "again" / "README.md").read_text()
    assert firings_of(loaded, lambda: loaded(**batch)) == firings_of(model, lambda: model(**batch))
