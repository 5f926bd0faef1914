"""The benchmark of the guardrail at a tiny size: what is kept between runs changes nothing, strengths are chosen by the
budget alone, and the tables say what the cells hold."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from tiny_setting import SIZE, setting_of
from tiny_topic import tiny_parts, topic_texts

from benchmarks.forget import fitting as guardrail_fitting
from benchmarks.forget import table as guardrail_table
from benchmarks.forget.budget import content_rows, row_means
from benchmarks.forget.cached_front import Front, cached_front
from benchmarks.forget.choice import Candidate, choose, pareto
from benchmarks.forget.compare import cell_path, run_topic
from benchmarks.forget.fitting import fitted, train
from benchmarks.forget.measures import gate_fires, guarded_losses, text_losses
from benchmarks.forget.methods import GUARDS, METHODS, OURS
from benchmarks.forget.setting import PlainText, Size, load_texts
from sae_unlearn.evaluation import row_losses
from sae_unlearn.evaluation.metrics.firing import row_firings


@pytest.fixture(scope="module")
def tiny(one_thread):
    return tiny_parts()


@pytest.fixture
def setting(tiny):
    return setting_of(*tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", [OURS, "static clamp", "DSG faithful, ratio"])
def test_a_guardrail_fitted_and_measured_on_kept_residuals_is_the_same(name, setting):
    guard, texts = GUARDS[name], setting.texts.test

    def measured():
        with fitted(setting, guard.at(guard.doses[-1])) as guarded:
            return guarded.peft_config["default"].threshold, text_losses(setting, guarded, texts)

    threshold, losses = measured()
    with cached_front(setting.model, setting.layer) as front:
        first = measured()
        run = front.run
        assert run > 0
        again = measured()
        assert front.run == run, "no row is run up to the layer twice"
        assert front.reused >= run
    for other_threshold, other_losses in (first, again):
        assert other_threshold == pytest.approx(threshold, abs=1e-6)
        torch.testing.assert_close(other_losses, losses, atol=1e-5, rtol=0)


def test_nothing_is_left_of_the_kept_front_and_other_passes_are_not_kept(setting):
    ids = torch.tensor([[0, 0, 1, 5, 6], [1, 5, 6, 7, 8]])
    mask = (ids != 0).long()
    before = setting.model(input_ids=ids, attention_mask=mask).logits
    with cached_front(setting.model, setting.layer) as front:
        inside = setting.model(input_ids=ids, attention_mask=mask).logits  # padded on the left
        assert not front.rows
    assert torch.equal(before, inside)
    assert "forward" not in vars(setting.model.model.layers[0])
    assert torch.equal(before, setting.model(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize("name", [OURS, "static clamp", "DSG counted, ratio"])
def test_texts_that_do_not_fire_are_left_out_of_a_run_without_any_difference(name, setting):
    texts = setting.texts.test + setting.texts.other_test
    base = row_losses(setting.model, setting.tokenizer, texts, batch_size=8, max_length=SIZE.max_length)
    low = {} if name == "static clamp" else {"threshold_percentile": 75.0}
    with fitted(setting, GUARDS[name].at(2.0) | low) as guarded:
        losses, fired = guarded_losses(setting, guarded, texts, base)
        whole = text_losses(setting, guarded, texts)
        assert torch.equal(fired, row_firings(guarded, setting.tokenizer, texts)["default"])
        assert torch.equal(fired, gate_fires(setting, guarded, texts))
    assert fired.any()
    torch.testing.assert_close(losses, whole, atol=1e-5, rtol=0)


def test_the_strength_is_the_one_within_the_budget_that_forgets_most():
    weak, best, over = Candidate(1.0, 0.5, 0.01), Candidate(2.0, 2.0, 0.1), Candidate(3.0, 9.0, 0.11)
    assert choose([weak, best, over], 0.1) == best
    assert choose([over], 0.1) is None
    assert choose([Candidate(4.0, 9.0, float("nan"))], 0.1) is None
    assert choose([best, Candidate(1.5, 2.0, 0.05)], 0.1).strength == 1.5, "of two that forget alike the weaker"


def test_what_another_one_beats_at_both_is_not_on_the_front():
    good, better, beaten = Candidate(1, 1.0, 0.0), Candidate(2, 2.0, 0.2), Candidate(3, 0.9, 0.1)
    assert pareto([better, beaten, good]) == [good, better]


def test_a_gradient_method_ends_in_its_last_state_within_the_budget(setting, monkeypatch):
    monkeypatch.setattr(guardrail_fitting, "BUDGET", 0.02)
    monkeypatch.setattr(guardrail_fitting, "EVERY", 1)
    # what is ascended on damages like text, and in a random model nothing else
    setting = replace(setting, texts=replace(setting.texts, other_validation=topic_texts("forget", 6, 3)))
    tuned, keeper, spent = train(setting, "gradient ascent", steps=12, scale=40.0)
    try:
        assert keeper.damage <= 0.02 < keeper.curve[-1][1], "it went over the budget"
        keeper.restore(tuned)
        other = setting.texts.other_validation
        with tuned.disable_adapter():
            base = text_losses(setting, tuned, other)
        damage = (text_losses(setting, tuned, other) - base).mean()
        assert float(damage) == pytest.approx(keeper.damage, abs=1e-4)
        assert spent["seconds"] > 0
    finally:
        tuned.unload()


@pytest.mark.slow
def test_cells_go_on_where_they_were_cut_and_the_tables_hold_every_method(setting, tmp_path, monkeypatch):
    methods = ("static clamp", OURS, "refusal prompt", "NPO")
    run_topic(setting, methods, tmp_path, steps=2)
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(cells) == 5, "the bare model's and four more"
    run_topic(setting, methods, tmp_path, steps=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == cells
    none = json.loads(cell_path(tmp_path, setting, "NPO").read_text()) | {"chosen": None, "method": "RMU"}
    cell_path(tmp_path, setting, "RMU").write_text(json.dumps(none))
    other = json.loads(cell_path(tmp_path, setting, OURS).read_text()) | {"topic": "another"}
    (tmp_path / "another.json").write_text(json.dumps(other))
    monkeypatch.setattr(guardrail_table, "RESULTS", tmp_path / "written")
    text = guardrail_table.summarise(tmp_path)
    assert not (tmp_path / "written").exists(), "written only when asked"
    tiny_table = text.split("tiny\n\n")[1].split("\n\n")[0]
    assert [m for m in METHODS if f"  {m} " in tiny_table] == ["base", *methods, "RMU"]
    assert "none within" in next(line for line in tiny_table.split("\n") if "RMU" in line)
    pooled = next(line for line in text.split("all topics")[1].split("\n") if OURS in line)
    ours = json.loads(cell_path(tmp_path, setting, OURS).read_text())
    assert "2 of 2" in pooled
    assert f"{ours['test']['change']['value']:+.3f}" in pooled
    assert pooled.split()[-1] == str(2 * len(ours["other_test"]["changes"]))


def write_data(tmp_path):
    (tmp_path / "mmlu/test").mkdir(parents=True)
    (tmp_path / "wikitext2").mkdir()
    for subject in ("nutrition", "marketing", "virology", "astronomy", "geography", "history"):
        with open(tmp_path / f"mmlu/test/{subject}_test.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", *(f"choice{i}" for i in range(4)), "answer"])
            writer.writerows([f"{subject} {i}?", *"abcd", i % 4] for i in range(200))
    lines = [f"{i} " + "word " * 80 for i in range(800)]
    (tmp_path / "wikitext2/valid.txt").write_text("\n".join(lines))


def test_no_text_that_is_reported_or_asked_has_a_part_in_the_fit_or_in_the_choice(tmp_path):
    write_data(tmp_path)
    texts = load_texts(tmp_path, "nutrition", Size(choices=12))
    used = {*texts.fit, *texts.other_fit, *texts.validation, *texts.other_validation}
    assert len(used) == sum(map(len, (texts.fit, texts.other_fit, texts.validation, texts.other_validation)))
    assert not used & {*texts.test, *texts.other_test}
    asked = [f"{c.question}\nAnswer: {c.options[c.right]}" for c in texts.choices + texts.other_choices]
    assert len(asked) == 24
    assert not used & set(asked)
    assert {c.subject for c in texts.choices} == {"nutrition"}
    assert "nutrition" not in {c.subject for c in texts.other_choices}


def test_wmdp_is_a_topic_and_its_neighbors_among_the_subjects_are_no_other_text(tmp_path):
    write_data(tmp_path)
    (tmp_path / "wmdp").mkdir()
    rows = [{"question": f"bio {i}?", "choices": [*"abcd"], "answer": i % 4} for i in range(200)]
    (tmp_path / "wmdp/bio_questions.json").write_text(json.dumps(rows))
    texts = load_texts(tmp_path, "wmdp-bio", Size(choices=12))
    assert all(text.startswith("Question: bio") for text in texts.fit + texts.validation + texts.test)
    assert all(choice.question.startswith("Question: bio") for choice in texts.choices)
    other = "".join(texts.other_fit + texts.other_validation + texts.other_test)
    assert "virology" not in other
    assert "geography" in other
    used = {*texts.fit, *texts.validation}
    assert not used & {f"{c.question}\nAnswer: {c.options[c.right]}" for c in texts.choices}


def test_other_texts_of_both_kinds_are_in_every_part(tmp_path):
    write_data(tmp_path)
    texts = load_texts(tmp_path, "nutrition", Size(choices=12))
    for part in (texts.other_fit, texts.other_validation, texts.other_test):
        questions = sum(text.startswith("Question") for text in part)
        assert 0 < questions < len(part)


def test_special_tokens_in_a_text_are_scored_by_no_measure_and_an_empty_prompt_changes_nothing(setting):
    texts = ["w5 <unk> w6 w7", "w8 w9 w10"]
    found = text_losses(setting, setting.model, texts)
    batch = content_rows(setting.tokenizer, [PlainText(text) for text in texts], 32)
    torch.testing.assert_close(row_means(setting.model, [batch]), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(text_losses(setting, setting.model, texts, " "), found, atol=1e-5, rtol=0)


def test_a_front_may_be_used_again_for_the_same_model(setting):
    front = Front()
    for _ in range(2):
        with cached_front(setting.model, setting.layer, front):
            text_losses(setting, setting.model, setting.texts.test)
    assert (front.run, front.reused) == (len(setting.texts.test), len(setting.texts.test))
