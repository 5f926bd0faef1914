"""`evaluate` on a bare, a guarded and a LoRA model: every figure against what the plain functions say."""

import json
import math
import sys

import pytest
import torch
from lettered_words import lettered_tokenizer
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_parts, tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn import attach_guardrail, fit_guardrail
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import (
    Choice,
    Estimate,
    Fact,
    ask,
    compare,
    complete,
    evaluate,
    forget_quality,
    log_truth_ratios,
    option_likelihoods,
    recall,
    right_by_letter,
    rouge_l,
    row_divergences,
    row_firings,
    row_losses,
)
from sae_unlearn.evaluation.metrics.recall import Recall, tokens_needed


TEXTS = topic_texts("retain", 7)
FACTS = [Fact(text, ("w3 w4", "w5"), f"subject {i // 2}") for i, text in enumerate(topic_texts("forget", 6, words=5))]
EXAM = [Choice(f"w3 w{4 + i}", (f"w{20 + i}", f"w{30 + i} w31", "w40"), i % 3) for i in range(5)]
ANSWERS = [Choice(f"w6 w{4 + i}", (f"w{21 + i}", f"w{33 + i} w31", "w41"), i % 3, shown=False) for i in range(6)]


def knowing(model, tokenizer, facts):
    """The facts, of which every other has what the model says as an accepted answer."""
    said = [complete(model, tokenizer, [fact.prompt], max_new_tokens=2)[0].strip() for fact in facts]
    pairs = enumerate(zip(facts, said, strict=True))
    return [Fact(f.prompt, (f.answers[0], s) if i % 2 else (s, f.answers[0]), f.subject) for i, (f, s) in pairs]


@pytest.fixture(scope="module")
def guarded():
    model, tokenizer, sae = tiny_parts()
    return fit_guardrail(model, tokenizer, sae, topic_texts("forget", 40), topic_texts("retain", 80), progress=False)


def evaluated(model, tokenizer, **options):
    sides = {"forget": {"facts": FACTS}, "retain": {"text": TEXTS}}
    return evaluate(model, tokenizer, **(sides | {"progress": False, "max_new_tokens": 4} | options))


def test_facts_of_a_bare_model():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    facts = knowing(model, tokenizer, FACTS)
    report = evaluate(model, tokenizer, forget=facts, progress=False, max_new_tokens=4)
    subjects = [fact.subject for fact in facts]
    found = recall(model, tokenizer, facts, max_new_tokens=4)
    assert report.find("alias_recall", "forget").estimate == Estimate.share([True] * 6, subjects)
    exact = [one.completion.strip().startswith(one.fact.answers[0]) for one in found]
    assert exact == [True, False] * 3
    assert report.find("exact_recall", "forget").estimate == Estimate.share(exact, subjects)
    assert report.find("refusals", "forget").estimate == ask(model, tokenizer, facts, max_new_tokens=4).refused
    assert report.find("rouge_l_recall", "forget").values == tuple(rouge_l(found).recall.tolist())
    assert report.find("rouge_l_f1", "forget").values == tuple(rouge_l(found).f1.tolist())
    metrics = ["exact_recall", "alias_recall", "rouge_l_recall", "rouge_l_f1", "refusals"]
    assert [f.metric for f in report.figures] == metrics
    assert report.find("alias_recall", "forget").estimate.n == 3


def test_rouge_is_the_longest_common_subsequence():
    def plain(answer, text):
        a, b = answer.split(), text.split()
        best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
        common = best[-1][-1]
        return common / len(a), 2 * common / (len(a) + len(b))  # 2PR / (P + R)

    cases = [("red green blue", "green red blue"), ("red green", "blue"), ("red green", "so red is very green today")]
    found = rouge_l([Recall(Fact("?", (answer,)), text, False) for answer, text in cases])
    assert found.recall.tolist() == pytest.approx([plain(*case)[0] for case in cases])
    assert found.f1.tolist() == pytest.approx([plain(*case)[1] for case in cases])
    best = rouge_l([Recall(Fact("?", ("blue", "red green")), "red, green", False)])
    assert (best.recall.tolist(), best.f1.tolist()) == ([1.0], [1.0])


def test_rouge_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    report = evaluated(base_model("llama"), tiny_tokenizer())
    assert not any("rouge" in figure.metric for figure in report.figures)
    (note,) = report.notes
    assert note.startswith('forget, facts: skipped ROUGE-L. ROUGE-L needs rouge-score; run: pip install ".[eval]"')


def test_choices_by_probability_and_letter():
    model, tokenizer = base_model("gemma3"), lettered_tokenizer()
    report = evaluate(model, tokenizer, retain=EXAM, progress=False)
    hits = right_by_letter(model, tokenizer, EXAM)
    assert report.find("letter_accuracy", "retain").values == tuple(hits.mean(dim=1).tolist())
    assert report.find("letter_accuracy_as_given", "retain").values == tuple(hits[:, 0].tolist())
    scores = [found.log_probs for found in option_likelihoods(model, tokenizer, EXAM)]
    right = [float(int(s.argmax()) == c.right) for s, c in zip(scores, EXAM, strict=True)]
    assert report.find("likelihood_accuracy", "retain").values == tuple(right)
    assert "truth_ratio" not in {figure.metric for figure in report.figures}


def test_truth_ratios_and_forget_quality():
    model, tokenizer, other = base_model("llama"), lettered_tokenizer(), base_model("gemma2")
    reference = evaluate(other, tokenizer, forget=ANSWERS, progress=False)
    report = evaluate(model, tokenizer, forget=ANSWERS, retain=ANSWERS, reference=reference, progress=False)
    ratios = [log_truth_ratios(ANSWERS, option_likelihoods(m, tokenizer, ANSWERS)) for m in (model, other)]
    assert report.find("truth_ratio", "forget").estimate.value == pytest.approx(float(ratios[0].mean().exp()))
    assert report.find("truth_score", "retain").estimate.value == pytest.approx(
        float((1 - ratios[0].exp()).clamp(min=0).mean())
    )
    quality = forget_quality(*ratios)
    assert report.find("forget_quality", "forget").estimate == quality.p_value
    assert report.find("ks_distance", "forget").estimate == quality.distance
    metrics = {(figure.side, figure.metric) for figure in report.figures}
    assert ("retain", "forget_quality") not in metrics
    assert ("forget", "truth_score") not in metrics
    with pytest.raises(UnlearnError, match=r"reference=.*forget/choices"):
        evaluate(model, tokenizer, forget=ANSWERS[:3], reference=reference, progress=False)
    report = evaluate(model, tokenizer, forget=FACTS, reference=reference, max_new_tokens=1, progress=False)
    assert any(note.startswith("reference: skipped forget quality") for note in report.notes)


def test_perplexity_counts_tokens():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    found = evaluated(model, tokenizer).find("perplexity", "retain")
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double().log_softmax(dim=-1)
        total -= float(logits.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert found.estimate.value == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found.weights == tuple(float(len(tokenizer(text).input_ids) - 1) for text in TEXTS)


def test_a_lora_is_compared_with_its_base():
    tokenizer = tiny_tokenizer()
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    bare, tuned = base_model("llama"), get_peft_model(base_model("llama"), lora).eval()
    before, after = evaluated(bare, tokenizer), evaluated(tuned, tokenizer)
    assert "kl" not in {figure.metric for figure in before.figures}
    found = after.find("kl", "retain")
    assert found.estimate == Estimate.mean(row_divergences(tuned, tokenizer, TEXTS, batch_size=8))
    with_base = evaluated(tuned, tokenizer, base=bare).find("kl", "retain")
    assert with_base.values == pytest.approx(found.values, abs=1e-6)
    changes = {one.metric: one for one in compare(before, after).changes}
    assert changes["perplexity"].change.value == pytest.approx(
        after.find("perplexity", "retain").estimate.value - before.find("perplexity", "retain").estimate.value
    )
    assert after.title == "tiny-llama with default (LORA)"


def test_with_adapters_disabled_it_is_the_base(guarded):
    tokenizer = tiny_tokenizer()
    with guarded.disable_adapter():
        report = evaluated(guarded, tokenizer)
        assert guarded.get_model_status().enabled is False
    assert not any(figure.metric == "kl" or figure.metric.startswith("fires") for figure in report.figures)
    plain = row_losses(tiny_parts()[0], tokenizer, TEXTS)
    assert report.find("perplexity", "retain").values == pytest.approx(plain.tolist(), abs=1e-5)


def test_fire_rates_of_a_guarded_model(guarded):
    tokenizer = lettered_tokenizer()
    pairs = zip(topic_texts("retain", 4, seed=5, words=6), topic_texts("forget", 4, seed=5), strict=True)
    texts = [text for pair in pairs for text in pair]  # of unlike lengths, so that they are batched in another order
    alone = [bool(row_firings(guarded, tokenizer, [text])["default"]) for text in texts]
    assert True in alone
    assert False in alone
    for batch_size in (2, 16):
        assert row_firings(guarded, tokenizer, texts, batch_size=batch_size)["default"].tolist() == alone
    report = evaluate(guarded, tokenizer, forget=[*texts, *FACTS, *EXAM], retain=ANSWERS, progress=False)
    assert report.find("fires:default", "forget", "texts").values == tuple(map(float, alone))
    assert report.find("fires:default", "forget", "texts").estimate == Estimate.share(alone)
    for data, rows in (("facts", FACTS), ("choices", EXAM)):
        assert len(report.find("fires:default", "forget", data).values) == len(rows)
    prompts = [f"{choice.question}\nAnswer:" for choice in ANSWERS]
    expected = row_firings(guarded, tokenizer, prompts)["default"].double().tolist()
    assert report.find("fires:default", "retain").values == tuple(expected)
    assert "kl" in {figure.metric for figure in report.figures}


def test_every_guardrail_has_its_own_rates(guarded, tmp_path):
    guarded.save_pretrained(tmp_path)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_parts()[0], lora, adapter_name="tuned")
    for name in ("one", "two"):
        model = attach_guardrail(model, tmp_path, adapter_name=name, check_base=False)
    tokenizer, texts = tiny_tokenizer(), topic_texts("forget", 5, seed=5)
    report = evaluate(model, tokenizer, forget=[*texts, *FACTS], progress=False)
    for data in ("texts", "facts"):
        one, two = (report.find(f"fires:{name}", "forget", data) for name in ("one", "two"))
        assert one.values == two.values  # the same guardrail twice
    assert report.title.endswith("with tuned (LORA), one (SAE_GUARDRAIL), two (SAE_GUARDRAIL)")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bare", "guarded"])
def test_batches_do_not_matter(kind, guarded):
    tokenizer = lettered_tokenizer()
    model = guarded if kind == "guarded" else base_model("llama")
    sides = {"forget": [*FACTS, *ANSWERS], "retain": {"exam": EXAM, "text": TEXTS}}
    one, many = (evaluate(model, tokenizer, **sides, batch_size=n, progress=False) for n in (1, 5))
    assert [figure.key for figure in one.figures] == [figure.key for figure in many.figures]
    for a, b in zip(one.figures, many.figures, strict=True):
        assert a.values == pytest.approx(b.values, abs=1e-4), a.key
        assert (a.rows, a.groups, a.weights) == (b.rows, b.groups, b.weights)


def test_the_model_is_left_as_it_was(guarded):
    guarded.train()
    guarded.get_base_model().lm_head.eval()
    modes = [module.training for module in guarded.modules()]
    evaluated(guarded, lettered_tokenizer(), forget=[*FACTS, *EXAM])
    assert [module.training for module in guarded.modules()] == modes
    assert guarded.get_model_status().enabled is True
    guarded.eval()


def test_sets_are_told_apart_by_name_and_kind():
    report = evaluated(base_model("llama"), tiny_tokenizer(), forget={"mine": [*FACTS, *ANSWERS], "other": TEXTS[:2]})
    assert list(dict.fromkeys(figure.data for figure in report.figures)) == [
        "mine facts",
        "mine choices",
        "other",
        "text",
    ]


def test_rows_with_a_text_column_are_texts():
    rows = [{"body": text} for text in TEXTS]
    found = evaluated(base_model("llama"), tiny_tokenizer(), retain={"text": rows}, text_column="body")
    assert found == evaluated(base_model("llama"), tiny_tokenizer())


def test_no_text_is_kept(tmp_path):
    report = evaluated(base_model("llama"), lettered_tokenizer(), retain=EXAM)
    assert "w3" not in json.dumps(report.to_dict())
    assert "subject" not in json.dumps(report.to_dict())
    model = base_model("llama")
    model.config._name_or_path = str(tmp_path)
    assert evaluated(model, tiny_tokenizer()).title == tmp_path.name


def test_a_chat_template_is_used():
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    report = evaluate(model, tokenizer, forget=FACTS, chat_template=True, max_new_tokens=3, progress=False)
    rendered = [Fact(f"w70 {fact.prompt} w71\n", fact.answers, fact.subject) for fact in FACTS]
    expected = rouge_l(recall(model, tokenizer, rendered, max_new_tokens=3)).recall
    assert report.find("rouge_l_recall", "forget").values == tuple(expected.tolist())
    assert report.figures[0].rows != evaluate(model, tokenizer, FACTS, max_new_tokens=3, progress=False).figures[0].rows


def test_completions_are_as_long_as_the_answers_need():
    tokenizer = tiny_tokenizer()
    assert tokens_needed(tokenizer, FACTS) == 6
    assert tokens_needed(tokenizer, [Fact("w3", ("w4 " * 500,))]) == 128


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"forget": None, "retain": None}, "forget=None, retain=None"),
        ({"forget": []}, r"forget=\[\]"),
        ({"forget": {"mine": []}}, r"forget\['mine'\]=\[\]"),
        ({"forget": {"a": [*FACTS, "w3 w4"], "a facts": FACTS}}, "forget='a facts'"),
        ({"retain": "one text"}, "retain: .*got str"),
        ({"retain": [3]}, "retain: .*got int"),
        ({"retain": [{"body": "w3"}]}, "retain: .*got dict with columns body"),
        ({"retain": [*EXAM, *ANSWERS]}, "retain, .*: expected the options"),
        ({"forget": [Fact("w3", ())]}, r"answers=\(\) of 'w3'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"orders": 0}, "orders=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_what_cannot_be_measured_is_said(options, said):
    with pytest.raises(UnlearnError, match=said):
        evaluated(base_model("llama"), tiny_tokenizer(), **options)
