"""Paragraphs in the windowed statistic, with a weight of their own, against its equation and on models."""

import math

import pytest
import torch
from forward_calls import GREEDY, firings_of
from test_gate import cuts, random_rows
from test_messages import some_ends
from zoo import PARAGRAPHS, base_model, guarded, padded, planted_config, token_ids

from sae_unlearn import GuardrailError, attach_guardrail
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.decision import decide, row_statistic, statistic_of
from sae_unlearn.guardrail.gate.windowed import message_part
from sae_unlearn.guardrail.summary import guardrail_facts


def config_of(**fields):
    return planted_config(**(PARAGRAPHS | {"gate_scope": "prefix", "special_ids": None} | fields))


def slow_values(scores, counted, ends, given):
    """`S_t` after each token by its equation, in float64."""
    found, ended, paragraph = [], [], []
    total, number, low, peak = 0.0, 0, 0.0, 0.0

    def z(hits, tokens):
        n = max(tokens, given.min_tokens)
        return (hits - given.other_mean * tokens) / math.sqrt(given.row_variance * n**2 + given.token_variance * n)

    for score, counts, end in zip(scores, counted, ends, strict=True):
        total, number = total + score, number + counts
        y = total - given.drift * number
        low = min(low, y)
        peak = max(peak, y - low)
        paragraph.append((score, counts))
        own = given.message_weight * z(sum(s for s, _ in paragraph), sum(c for _, c in paragraph))
        found.append(max([z(total, number), given.sum_weight * peak, own, *ended]))
        if end:
            ended.append(own)
            paragraph = []
    return found


def rows_of_scores(seed):
    """Scores of either sign, the counted tokens, and ends among them."""
    hot, counted = random_rows(seed)
    scores = torch.where(counted, 3.0 * hot - 1.0, 0.0)
    return scores, counted, some_ends(counted, seed)


@pytest.mark.parametrize("weight", [1.0, 0.6])
def test_the_statistic_is_its_equation_however_the_sequence_is_cut(weight):
    config, both = config_of(message_weight=weight), set()
    for seed in range(6):
        scores, counted, ends = rows_of_scores(seed)
        rows = zip(scores.tolist(), counted.tolist(), ends.tolist(), strict=True)
        expected = torch.tensor([slow_values(*row, config.statistic_kwargs) for row in rows])
        whole = decide(scores, counted, config, ends=ends)
        for pieces in (cuts(17, seed), [(t, t + 1) for t in range(17)]):
            state, fires, states = None, [], []
            for start, stop in pieces:
                decision = decide(
                    scores[:, start:stop], counted[:, start:stop], config, state, ends=ends[:, start:stop]
                )
                state = decision.state[:, -1]
                fires.append(decision.fire)
                states.append(decision.state)
            assert torch.equal(torch.cat(states, dim=1), whole.state)
            assert torch.equal(torch.cat(fires, dim=1), whole.fire)
        values = [[statistic_of(state, config) for state in row] for row in whole.state.tolist()]
        torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(row_statistic(scores, counted, config, ends), expected.amax(dim=1))
        both |= set(whole.fire.flatten().tolist())
    assert both == {True, False}


def test_a_text_without_blank_lines_is_judged_as_without_paragraphs_and_no_blank_line_hides_anything():
    with_, without = config_of(), config_of(boundary_ids=None, message_weight=1.0)
    for seed in range(6):
        scores, counted, ends = rows_of_scores(seed)
        plain = row_statistic(scores, counted, without)
        assert torch.equal(row_statistic(scores, counted, with_, torch.zeros_like(ends)), plain)
        assert bool((row_statistic(scores, counted, with_, ends) >= plain).all())


def test_a_weight_of_one_is_no_operator():
    hits, tokens = torch.tensor([3.0, 4.0]), torch.tensor([8.0, 20.0])
    with torch.profiler.profile() as one:
        message_part(hits, tokens, config_of(message_weight=1.0).statistic_kwargs)
    with torch.profiler.profile() as other:
        message_part(hits, tokens, config_of(message_weight=0.5).statistic_kwargs)
    counts = [sum(e.name == "aten::mul" for e in found.events()) for found in (one, other)]
    assert counts[0] + 1 == counts[1]


def texts():
    """Rows of several lengths, with tokens that end paragraphs among them."""
    rows = [token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15, 9, 5)]
    for i, row in enumerate(rows):
        row[2 + i % 2 :: 4] = 40 + i
    return rows


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "falcon_h1"])
def test_records_of_a_batch_are_those_of_its_rows_bit_for_bit(architecture):
    model = guarded(architecture, **PARAGRAPHS)
    without = guarded(architecture, **PARAGRAPHS | {"boundary_ids": None, "message_weight": 1.0})

    def facts(firings):
        return [(f.statistic, f.fired, f.at_token, f.evidence, f.tokens) for f in firings]

    def singles(guard):
        return facts([firings_of(guard, lambda row=row: guard(input_ids=row[None]))[0] for row in texts()])

    expected = singles(model)
    assert expected != singles(without)
    for side in ("left", "right"):
        assert facts(firings_of(model, lambda side=side: model(**padded(texts(), side)))) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(beams):
    model, batch = guarded("llama", gate_scope="prefix", **PARAGRAPHS), padded(texts())
    found = [model.generate(**batch, **GREEDY, num_beams=beams, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*found)


def test_rejected_drafts_leave_no_trace():
    model, ids = guarded("llama", **PARAGRAPHS), texts()[3][None]
    drafted = model.generate(input_ids=ids, **GREEDY, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted, model.generate(input_ids=ids, **GREEDY))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"message_weight": 0.0}, "message_weight=0.0"),
        ({"message_weight": float("nan")}, "message_weight"),
        ({"boundary_ids": None}, "message_weight=0.7"),
        ({"statistic": "ratio"}, "message_weight=0.7"),
    ],
)
def test_weights_that_cannot_work_are_refused(fields, match):
    with pytest.raises(GuardrailError, match=match):
        planted_config(**(PARAGRAPHS | fields))


def test_an_artefact_without_the_weight_has_that_of_one(tmp_path):
    stored = planted_config(**PARAGRAPHS | {"message_weight": 1.0}).to_dict()
    del stored["statistic_kwargs"]["message_weight"]
    assert SAEGuardrailConfig.from_peft_type(**stored).statistic_kwargs.message_weight == 1


def test_they_are_saved_loaded_and_said_in_words(tmp_path):
    model = guarded("llama", **PARAGRAPHS)
    model.save_pretrained(tmp_path)
    assert "each paragraph by itself" in guardrail_facts(model.peft_config["default"], [-1.0])["gate"]
    loaded, batch = attach_guardrail(base_model("llama"), tmp_path), padded(texts())
    loaded.save_pretrained(tmp_path / "again")
    assert "paragraph by paragraph" in (tmp_path / "again" / "README.md").read_text()
    assert loaded.peft_config["default"].statistic_kwargs.message_weight == 0.7
    assert firings_of(loaded, lambda: loaded(**batch)) == firings_of(model, lambda: model(**batch))
