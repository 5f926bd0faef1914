"""`audit` on a bare, a guarded and a LoRA model: its rows against what the plain functions say."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_parts, tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn import fit_guardrail, set_action
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import AuditReport, Choice, Estimate, Fact, audit, complete, evaluate, recall
from sae_unlearn.evaluation.audit.attacks.dilution import diluted
from sae_unlearn.evaluation.audit.context import as_facts
from sae_unlearn.evaluation.audit.registry import ATTACKS, budget
from sae_unlearn.evaluation.audit.row import RECALL, AuditRow, any_of
from sae_unlearn.evaluation.audit.tables import best
from sae_unlearn.evaluation.report.figure import figure_of_rows


def facts(side, number, model=None):
    """Facts, of which every other one is what `model` says."""
    prompts = topic_texts(side, number, seed=3, words=6)
    said = (
        ["w3"] * number
        if model is None
        else [complete(model, tiny_tokenizer(), [p], max_new_tokens=1)[0].strip() for p in prompts]
    )
    return [Fact(p, (said[i] if i % 2 else "w3",), f"s{i // 2}") for i, p in enumerate(prompts)]


FORGET, RETAIN = facts("forget", 8, base_model("llama")), facts("retain", 4)
QUICK = {"max_new_tokens": 2, "progress": False}


@pytest.fixture(scope="module")
def guarded():
    model, tokenizer, sae = tiny_parts()
    return fit_guardrail(model, tokenizer, sae, topic_texts("forget", 40), topic_texts("retain", 80), progress=False)


def lora_model():
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base_model("llama"), lora).eval()


def test_a_bare_model_has_no_control():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    report = audit(model, tokenizer, FORGET, attacks=["removal", "dilution", "direction"], lengths=(4, 500), **QUICK)
    plain = recall(model, tokenizer, FORGET, max_new_tokens=2)
    assert report.rows[0].find().values == tuple(float(one.right) for one in plain)
    assert sum(report.rows[0].find().values) == 4
    assert [row.attack for row in report.rows] == ["none", "dilution", "dilution", "dilution"]
    assert not any(row.base for row in report.rows)
    assert any("removal: skipped" in note for note in report.notes)
    assert any("direction: skipped" in note for note in report.notes)
    assert any("500 words make" in note for note in report.notes)
    assert "base" not in report.to_markdown().split("## ")[0].split("| attack |")[1].split("\n")[0]


def test_rows_of_a_guarded_model(guarded):
    tokenizer = tiny_tokenizer()
    report = audit(guarded, tokenizer, FORGET, RETAIN, attacks=["dilution", "removal"], lengths=(4,), seed=5, **QUICK)
    plain = evaluate(guarded, tokenizer, {"facts": FORGET}, {"facts": RETAIN}, **QUICK)
    assert report.rows[0].audited == plain.figures
    with guarded.disable_adapter():
        bare = evaluate(guarded, tokenizer, {"facts": FORGET}, {"facts": RETAIN}, **QUICK)
    assert report.rows[0].base == bare.figures
    removal = report.find("removal")
    assert [f.estimate for f in removal.audited] == [f.estimate for f in bare.figures]
    assert removal.base == ()
    changed = [Fact(diluted(f.prompt, 4, "after", seed=5, index=i), f.answers, f.subject) for i, f in enumerate(FORGET)]
    expected = evaluate(guarded, tokenizer, {"facts": changed}, **QUICK)
    row = report.find("dilution", "after", 4)
    assert row.find() == expected.find(RECALL, "forget")
    assert row.fires().values == expected.find("fires:default", "forget").values
    assert row.change.value == pytest.approx(row.find().estimate.value - report.rows[0].find().estimate.value)
    assert guarded.get_model_status().enabled is True


@pytest.mark.slow
def test_every_attack_on_a_lora(tmp_path):
    model, tokenizer = lora_model(), tiny_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = audit(
        model,
        tokenizer,
        FORGET,
        RETAIN,
        neighbors={"chemistry": topic_texts("retain", 3), "quiz": RETAIN},
        unnamed=RETAIN[:2],
        names=["somebody"],
        unknown=facts("retain", 4),
        lengths=(4,),
        steps=(0, 1),
        **QUICK,
    )
    assert {row.attack for row in report.rows} == {"none", *ATTACKS}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    controls = {(row.attack, row.variant) for row in report.rows if row.control}
    assert controls == {
        ("direction", "after layer 2, random direction"),
        *(
            ("relearning", f"{how}, {what}")
            for how in ("LoRA", "full")
            for what in ("taught other things", "base on unknown facts")
        ),
    }
    for row in report.rows:
        if row.attack in ("dilution", "splitting", "rephrasing", "spelling", "wrappers", "rounding", "none"):
            for side, n in (("forget", 4), ("retain", 2)):
                assert row.find(side=side).estimate.n == row.find(side=side, base=True).estimate.n == n
    assert report.find("relearning", "LoRA", 0).find().estimate.n == 2
    text = report.to_markdown()
    assert "| near: chemistry | perplexity |" in text
    assert "| far | recall, any accepted answer |" in text
    assert "| all of these | 30 |" in text
    written = report.save(tmp_path / "out")
    assert {path.name for path in written} == {"audit.json", "audit.md", "audit.png"}
    assert (tmp_path / "out" / "audit.png").read_bytes().startswith(b"\x89PNG")
    for source in (tmp_path / "out", tmp_path / "out" / "audit.json"):
        assert AuditReport.load(source) == report
    assert "w3" not in (tmp_path / "out" / "audit.json").read_text()  # no question and no answer


@pytest.mark.slow
def test_another_base_is_the_control():
    model, other, tokenizer = base_model("llama"), base_model("gemma2"), tiny_tokenizer()
    report = audit(model, tokenizer, FORGET, base=other, attacks=["splitting"], **QUICK)
    assert report.rows[0].base == evaluate(other, tokenizer, {"facts": FORGET}, **QUICK).figures
    expected = recall(other, tokenizer, FORGET, max_new_tokens=2)
    assert report.find("splitting", "in parts", 2).find(base=True).values == tuple(float(x.right) for x in expected)


def row(hits, attack="spelling", base=None, subjects=None):
    def figure(values):
        subject = subjects or [""] * len(values)
        return figure_of_rows("forget", "facts", RECALL, "share", torch.tensor(values), subject, "r")

    return AuditRow(attack, "", 1.0, (figure(hits),), () if base is None else (figure(base),))


def test_the_best_of_all_tries_is_a_union():
    rows = [row([1, 0, 0, 0], "none", [1, 1, 0, 0]), row([0, 0, 1, 0], base=[0, 0, 0, 1]), row([0, 0, 1, 0])]
    assert best(rows).values == (1, 0, 1, 0)
    assert best(rows).estimate == Estimate.share([True, False, True, False])
    assert best(rows, base=True).values == (1, 1, 0, 1)
    assert best(rows, side="retain") is None
    subjects = ["a", "a", "b", "b"]
    assert best([row([1, 0, 0, 0], subjects=subjects)]).estimate.n == 2
    with pytest.raises(UnlearnError, match=r"figures: .* 2 sets"):
        any_of(RECALL, [row([1, 0]).find(), row([1, 0, 1]).find()])


def test_choices_ask_for_the_letter_or_for_the_text():
    shown, hidden = Choice("Which?", ("x", "y"), 1, "s"), Choice("Who?", ("Ann", "Bob"), 0, shown=False)
    assert as_facts({"a": [shown], "b": [hidden]}, "forget") == [
        Fact("Which?\nA. x\nB. y\nAnswer:", ("B",), "s"),
        Fact("Who?\nAnswer:", ("Ann",), ""),
    ]


def test_every_attack_tells_its_budget():
    for name in ATTACKS:
        assert "not stated" not in budget(name)
        assert budget(name).startswith(("black box", "white box", "no data"))


def test_facts_without_subjects_are_divided_too():
    alone = [Fact(f.prompt, f.answers) for f in FORGET]
    report = audit(base_model("llama"), tiny_tokenizer(), alone, attacks=["relearning"], steps=(0,), **QUICK)
    assert report.find("relearning", "LoRA").find().estimate.n == 4
    one = [Fact(f.prompt, f.answers, "one") for f in FORGET]
    report = audit(base_model("llama"), tiny_tokenizer(), one, attacks=["relearning"], steps=(0,), **QUICK)
    assert any("All facts are of one subject" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attacks": ["prayer"]}, "attacks='prayer': .*dilution"),
        ({"forget": []}, r"forget=\[\]"),
        ({"forget": "one text"}, "forget: .*got str"),
        ({"retain": {"mine": ["a text"]}}, r"retain\['mine'\]: .*got str"),
        ({"unnamed": [Fact("w3 Bob", ("w4",))], "names": ["bob"]}, "unnamed: .*'w3 Bob' with name 'bob'"),
        ({"unnamed": [Fact("w3 Bob", ("w4",))]}, r"names=\(\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"unknown": [Fact("w3", ())]}, r"unknown: answers=\(\) of 'w3'"),
        ({"lengths": (16, -1)}, "lengths=-1"),
        ({"steps": (-2,)}, "steps=-2"),
        ({"layer": 4}, "layer=4: .*0 to 3"),
    ],
)
def test_what_cannot_be_audited_is_said_before_anything_is_asked(monkeypatch, options, said):
    model = base_model("llama")
    monkeypatch.setattr(model, "forward", None)
    options = {"forget": FORGET[:2], "retain": RETAIN} | QUICK | options
    with pytest.raises(UnlearnError, match=said):
        audit(model, tiny_tokenizer(), **options)


def test_an_attack_that_finds_nothing_to_work_on_is_noted_and_the_others_are_told(guarded):
    set_action(guarded, "default", "record")  # nothing is taken at the layer
    try:
        report = audit(guarded, tiny_tokenizer(), FORGET, attacks=["direction", "rephrasing"], **QUICK)
    finally:
        set_action(guarded, "default", "clamp")
    assert {row.attack for row in report.rows} == {"none", "rephrasing"}
    assert any(note.startswith("direction: skipped. layer=") for note in report.notes)


def test_relearning_is_compared_with_the_model_before_it():
    report = audit(base_model("llama"), tiny_tokenizer(), FORGET, attacks=["relearning"], steps=(2,), **QUICK)
    assert [row.strength for row in report.rows if row.variant == "LoRA"] == [0, 2]
    change = report.find("relearning", "LoRA", 2).change
    before, after = (report.find("relearning", "LoRA", steps).find().estimate.value for steps in (0, 2))
    assert change.value == after - before


def test_what_is_no_audit_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="source="):
        AuditReport.load(tmp_path)
    (tmp_path / "audit.json").write_text(json.dumps({"title": "x"}))
    with pytest.raises(UnlearnError, match=r"audit\.json: "):
        AuditReport.load(tmp_path)
