"""The claims: what is measured is what the rules read, and the rules can come out either way."""

import json

import pytest
import torch
from tiny_setting import setting_of
from tiny_topic import tiny_parts, topic_texts

from benchmarks.claims import CLAIMS, Work, cost, relearning, sequential, stability, zero_shot
from benchmarks.claims import run as guardrail_claims
from benchmarks.claims.claim import CANNOT, DOES_NOT, HOLDS, NOT_MEASURED
from benchmarks.claims.parts import Parts
from benchmarks.forget.cached_front import Front
from benchmarks.forget.compare import base_cell
from benchmarks.forget.methods import GRADIENTS, OURS
from benchmarks.forget.setting import Texts


@pytest.fixture(scope="module")
def setting(one_thread):
    return setting_of(*tiny_parts())


@pytest.fixture
def work(setting, tmp_path):
    front = Front()
    return Work(tmp_path, tmp_path, base_cell(setting, tmp_path, front), front, quick=True)


def changes(topic, other, n=12):
    spread = torch.linspace(-0.1, 0.1, n)
    return {"test": {"changes": (topic + spread).tolist()}, "other_test": {"changes": (other + spread / 10).tolist()}}


def cells(ours, other, gradient):
    chosen = {"chosen": {"strength": 1.0}}
    return {"cells": {OURS: changes(ours, other) | chosen, **dict.fromkeys(GRADIENTS, changes(gradient, 0.0) | chosen)}}


def spent(seconds, peak):
    return {"seconds": seconds, "peak_bytes": peak, "tokens_per_second": 1.0}


def shares(little):
    return {str(s): changes(little if s <= 10 else 2.0, 0.0) for s in (5, 10, 25, 50, 100)}


def states(useful, of):
    good, bad = {"forgotten": 2.0, "damage": 0.0}, {"refused": "no"}
    return [good] * useful + [bad] * (of - useful)


def tables(kept, other, theirs):
    ours = [{"a": 2.0, "b": 0.0, "other": 0.0}, {"a": 2.0 * kept, "b": 2.0, "other": other}]
    return {
        "topics": ["a", "b"],
        "guardrails": ours,
        "refused": {},
        "GradDiff": [{"a": theirs, "b": theirs, "other": 0.0}],
    }


def curves(guardrail, npo):
    base = {"0": 3.0, "30": 2.0}
    return {"base": base, "guardrail": {"0": 5.0, "30": 2.0 + 2 * guardrail}, "NPO": {"0": 5.0, "30": 2.0 + 2 * npo}}


def features(selected, random):
    return {"selected": [{"of the topic": selected}] * 3, "random": [{"of the topic": random}, {"of the topic": None}]}


COSTS = {"guardrail": spent(1, 1), **{name: spent(2, 2) for name in GRADIENTS}}
CASES = {
    "trade_off": (cells(2.0, 0.05, 1.0), [cells(2.0, 0.2, 1.0), cells(0.9, 0.0, 1.0)]),
    "cost": (COSTS, [COSTS | {"guardrail": spent(3, 1)}, COSTS | {"guardrail": spent(1, 3)}]),
    "stability": (
        {"guardrail": states(3, 4), "NPO": states(1, 4)},
        [{"guardrail": states(2, 4), "NPO": states(2, 4)}, {"guardrail": states(0, 4), "NPO": states(0, 4)}],
    ),
    "sequential": (tables(0.9, 0.0, 1.0), [tables(0.7, 0.0, 1.0), tables(1.0, 0.3, 1.0), tables(1.0, 0.0, 3.0)]),
    "relearning": (curves(0.8, 0.2), [curves(0.4, 0.2), curves(0.8, 0.9)]),
    "data_efficiency": (shares(1.8), [shares(1.0)]),
    "zero_shot": (
        {"zero-shot": changes(1.5, 0.0), "fitted": changes(2.0, 0.0)},
        [
            {"zero-shot": changes(0.5, 0.0), "fitted": changes(2.0, 0.0)},
            {"zero-shot": changes(1.5, 0.3), "fitted": changes(2.0, 0.0)},
            {"zero-shot": changes(-1.0, 0.0), "fitted": {"refused": "no"}},
        ],
    ),
    "interpretability": (features(0.9, 0.5), [features(0.7, 0.5), features(0.9, 1.0)]),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_or_does_not_by_its_figures(name):
    good, bad = CASES[name]
    assert CLAIMS[name].judge([good, good]).verdict == HOLDS
    for one in bad:
        assert CLAIMS[name].judge([one, one]).verdict == DOES_NOT


def test_the_trade_off_is_not_judged_without_every_method():
    found = cells(2.0, 0.05, 1.0)
    del found["cells"]["RMU"]
    verdict = CLAIMS["trade_off"].judge([found])
    assert verdict.verdict == NOT_MEASURED
    assert "RMU" in verdict.figure


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CLAIMS if n not in ("cost", "sequential")])
def test_what_is_measured_is_what_the_rule_reads(name, setting, work):
    found = json.loads(json.dumps(CLAIMS[name].measure(setting, work)))
    assert CLAIMS[name].judge([found]).verdict in (HOLDS, DOES_NOT, NOT_MEASURED)
    assert not setting.model.training
    assert not any("lora" in key or "guard" in key for key in setting.model.state_dict()), "the model is bare again"


@pytest.mark.slow
def test_stacked_guardrails_and_continued_training_give_tables_that_the_rule_reads(setting):
    def texts(side, other):
        parts = {"fit": 40, "validation": 4, "test": 4}
        mine = {part: topic_texts(side, n, i) for i, (part, n) in enumerate(parts.items())}
        theirs = {f"other_{part}": topic_texts(other, n + 24, i) for i, (part, n) in enumerate(parts.items())}
        return Texts(side, **mine, **theirs)

    both = {"a": texts("forget", "retain"), "b": texts("forget", "retain")}
    measured = {"a": both["a"].test, "b": both["b"].test, "other": both["a"].other_test}
    base = {part: sequential.text_losses(setting, setting.model, some) for part, some in measured.items()}
    table, refused = sequential._stacked(setting, both, measured, base)
    trained = sequential._trained(setting, both, measured, base, steps=2)
    assert not refused
    assert 0 != table[0]["a"] != table[1]["a"], "both guardrails are in force"
    verdict = sequential.judge(
        [{"topics": ["a", "b"], "guardrails": table, "refused": refused, sequential.GRADIENT: trained}]
    )
    assert verdict.verdict in (HOLDS, DOES_NOT)
    assert not any("lora" in key or "guard" in key for key in setting.model.state_dict())


@pytest.mark.parametrize("method", [cost.GUARDRAIL, "NPO"])
def test_a_cost_is_of_all_texts_to_fit_on(method, setting):
    found = cost.in_this_process(setting, method)
    texts = setting.texts
    mine, other = (cost._tokens(setting, some, 64) for some in (texts.fit, texts.other_fit))
    expected = mine + other if method == cost.GUARDRAIL else mine + other * len(texts.fit) / len(texts.other_fit)
    assert found["tokens"] == pytest.approx(expected)
    assert found["seconds"] == pytest.approx(found["tokens"] / found["tokens_per_second"])
    assert found["peak_bytes"] > 0


def test_features_without_text_are_those_that_promote_the_words(setting):
    word = "w7"
    ids = zero_shot.features_of(setting, [word], number=5)
    token = setting.tokenizer(word, add_special_tokens=False)["input_ids"][0]
    logits = setting.model.model.norm(setting.sae.W_dec) @ setting.model.get_output_embeddings().weight.T
    height = (logits[:, token] - logits.mean(dim=1)) / logits.std(dim=1)
    assert set(ids) == set(height.topk(5).indices.tolist())


def test_what_is_left_of_forgetting_is_counted_above_a_bare_model_taught_the_same():
    base = {"0": 3.0, "10": 2.5, "30": 2.0}
    assert relearning.share_left({"0": 5.0, "30": 3.0}, base) == 0.5
    assert relearning.share_left({"0": 3.0, "30": 3.0}, base) is None
    fact = relearning.fact_of("Question: who?\nAnswer: he")
    assert (fact.prompt, fact.answers) == ("Question: who?\nAnswer:", ("he",))
    assert relearning.fact_of("a b c d").prompt == "a b"


def test_a_setting_is_of_use_if_it_forgets_within_the_budget():
    assert stability.useful({"forgotten": 1.0, "damage": 0.1})
    assert not stability.useful({"forgotten": 1.0, "damage": 0.11})
    assert not stability.useful({"forgotten": 0.9, "damage": 0.0})
    assert not stability.useful({"refused": "why"})


def test_the_table_is_made_by_the_rules_from_the_files_that_are_there(tmp_path):
    for name in ("zero_shot", "relearning"):
        for number in range(2):
            cell = {"topic": f"topic{number}", "found": CASES[name][0] if name == "zero_shot" else CASES[name][1][0]}
            (tmp_path / f"{name}-topic{number}-0.json").write_text(json.dumps(cell))
    lines = guardrail_claims.summarise(tmp_path).split("\n")
    of = {name: next(line for line in lines if line.strip().startswith(CLAIMS[name].title)) for name in CLAIMS}
    assert f" {HOLDS} " in of["zero_shot"]
    assert "topic0, topic1" in of["zero_shot"]
    assert f" {DOES_NOT} " in of["relearning"]
    assert NOT_MEASURED in of["stability"]
    assert sum(CANNOT in line for line in lines) == len(guardrail_claims.ELSEWHERE)


def test_a_claim_that_was_cut_goes_on_with_the_parts_that_are_missing(tmp_path):
    asked = []

    def measure(part, until):
        return [part(name, lambda name=name: asked.append(name) or {"of": name}) for name in ("a 0.5", "a 1")[:until]]

    first, second = Parts(tmp_path / "parts"), Parts(tmp_path / "parts")
    measure(first, 1)
    assert measure(second, 2) == measure(Parts(), 2) == [{"of": "a 0.5"}, {"of": "a 1"}]
    assert asked == ["a 0.5", "a 1", "a 0.5", "a 1"], "once in the folder, and again where none is kept"
    assert first.seconds == 0 <= second.seconds
    second.remove()
    assert not (tmp_path / "parts").exists()
