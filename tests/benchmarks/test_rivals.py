"""Rivals on TOFU and LUME at a tiny size: no reported row is fitted on, each method is what it says, cells resume."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_guardrail_baselines import write_data
from tiny_topic import tiny_parts, topic_texts

from benchmarks.baselines import Batch, encode
from benchmarks.baselines.rows import cross_entropy
from benchmarks.forget import rivals, rivals_base
from benchmarks.forget.fitting import fitted
from benchmarks.forget.methods import GUARDS, OURS
from benchmarks.forget.rivals import PARTS, run_set, setting_of
from benchmarks.forget.rivals_base import loss_over, teach
from benchmarks.forget.rivals_methods import ALWAYS_ON, EMBEDDING, METHODS, Arena, topic_direction, turned
from benchmarks.forget.rivals_sets import SETS, Contest, as_row, as_text, load_contest
from benchmarks.forget.setting import PlainText, Texts
from benchmarks.gates.text_gates import TextGate, tfidf_fit
from benchmarks.site_pages import generate, results
from benchmarks.site_pages import rivals as page
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.evaluation import Choice, Fact


WAITING = generate.TEMPLATES.parent / "waiting/rivals.md.in"


def write_sets(folder: Path) -> None:
    """A data folder with sets of the real ones' form."""
    write_data(folder)
    (folder / "tofu").mkdir()
    (folder / "lume").mkdir()
    for name, number in (
        ("forget05", 200),
        ("retain95", 300),
        ("real_authors_perturbed", 96),
        ("world_facts_perturbed", 96),
    ):
        rows = [
            {
                "question": f"{name} {i}?",
                "answer": f"a{i}",
                "paraphrased_question": f"other {i}?",
                "subject": f"s{i // 20}",
            }
            for i in range(number)
        ]
        (folder / f"tofu/{name}.json").write_text("\n".join(map(json.dumps, rows)))
    for side in ("forget", "retain"):
        rows = []
        for task, questions in (("Task1", 1), ("Task2", 5), ("Task3", 1)):
            for i in range(15):
                rows.append(
                    {"id": f"{task}{i}-sc1", "input": f"{side} {task} {i} was born", "output": "then", "task": task}
                )
                for q in range(questions):
                    row = {"input": f"{side} {task} {i} {q} in Ada?", "output": f"o{i}", "task": task}
                    rows.append({"id": f"{task}{i}-qa{q}", **row})
        (folder / f"lume/{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("name", SETS)
def test_no_reported_row_to_keep_has_a_part_in_a_fit_and_no_row_chooses_what_it_is_reported_on(name, tmp_path):
    write_sets(tmp_path)
    contest = load_contest(tmp_path, name)
    kept, fitted = {*map(as_row, contest.asked["retain"])}, {*contest.keep}
    assert kept <= {*contest.taught}
    assert not kept & fitted
    assert not fitted & {*contest.other_validation}
    assert not kept & {*contest.other_validation}
    forget = {*map(as_row, contest.asked["forget"])}
    assert forget <= {*contest.forget} <= {*contest.taught}
    assert not forget & {*contest.validation}
    assert not fitted & {*contest.forget}
    assert not {f.subject for f in contest.relearned} & {f.subject for f in contest.asked["forget"]}
    assert len(contest.paraphrased) == len(contest.asked["forget"])
    assert all(a != b for a, b in zip(contest.paraphrased, contest.asked["forget"], strict=True))
    assert [f.answers for f in contest.paraphrased] == [f.answers for f in contest.asked["forget"]]


def test_the_loss_over_all_tokens_is_the_cross_entropy_and_over_fewer_is_less(one_thread):
    model, tokenizer, _ = tiny_parts()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    batch = encode(tokenizer, [PlainText("w2 w3", "w4 w5"), PlainText("w6 w7 w8")])
    whole = cross_entropy(tuned, batch).item()
    size = len(model.get_output_embeddings().weight)
    assert loss_over(tuned, batch, torch.arange(size)).item() == pytest.approx(whole, rel=1e-5)
    assert loss_over(tuned, batch, torch.arange(10)).item() < whole


def cut_after(steps: int) -> Callable[..., Batch]:
    """`encode`, which is interrupted after a number of batches."""
    done = 0

    def run(*given: Any) -> Batch:
        nonlocal done
        done += 1
        if done > steps:
            raise KeyboardInterrupt
        return encode(*given)

    return run


def test_teaching_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, one_thread):
    rows = [PlainText(f"w{i} w{i + 1}", f"w{i + 7} w{i + 9}") for i in range(2, 22)]

    monkeypatch.setattr(rivals_base, "EPOCHS", 3)
    monkeypatch.setattr(rivals_base, "KEEP_EVERY", 1)

    def taught(folder: str) -> torch.Tensor:
        model, tokenizer, _ = tiny_parts()
        tuned = teach(model, tokenizer, rows, tmp_path / folder)
        return torch.cat([p.detach().flatten() for p in tuned.parameters() if p.requires_grad])

    whole = taught("whole")
    for steps in (2, 3):  # within the first epoch, and in the second one
        with monkeypatch.context() as patch:
            patch.setattr(rivals_base, "encode", cut_after(steps))
            with pytest.raises(KeyboardInterrupt):
                taught("cut")
    assert torch.equal(taught("cut"), whole)
    losses = json.loads((tmp_path / "cut/epochs.json").read_text())
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def tiny_arena() -> Arena:
    """A contest of the tiny model's two topics."""
    model, tokenizer, sae = tiny_parts()
    model.requires_grad_(False)

    def rows(side: str, number: int, seed: int) -> list[PlainText]:
        words = [text.split() for text in topic_texts(side, number, seed)]
        return [PlainText(" ".join(some[:10]), " ".join(some[10:])) for some in words]

    def facts(side: str, number: int, seed: int) -> list[Fact]:
        return [Fact(row.prompt, (row.answer,), f"{side} {i}") for i, row in enumerate(rows(side, number, seed))]

    forget, keep = rows("forget", 40, 0), rows("retain", 64, 0)
    choices = [Choice("w30 w31", ("w35", "w40", "w41", "w42"), 0), Choice("w50 w51", ("w36", "w40", "w41", "w42"), 1)]
    contest = Contest(
        "tiny",
        taught=[*forget, *keep],
        forget=forget,
        keep=keep,
        validation=rows("forget", 4, 1),
        other_validation=rows("retain", 4, 1),
        asked={
            "forget": facts("forget", 4, 2),
            "retain": facts("retain", 4, 2),
            "real_authors": facts("retain", 3, 3),
            "world_facts": facts("retain", 3, 4),
        },
        paraphrased=facts("forget", 4, 5),
        relearned=facts("forget", 4, 6),
        names="w2",
        other=Texts("other", [], [], [], [], [], [], other_choices=choices),
    )
    return Arena(contest, setting_of(contest, model, tokenizer, sae), tfidf_fit, steps=2)


@torch.no_grad()
def test_where_the_gate_fires_the_residual_is_turned_and_keeps_its_norm(one_thread):
    arena = tiny_arena()
    model, layer = arena.setting.model, arena.setting.layer
    direction = topic_direction(arena)
    assert direction.norm().item() == pytest.approx(1.0, abs=1e-5)
    ids = torch.tensor([[1, 5, 6, 7], [1, 40, 41, 42]])

    def residual() -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = find_decoder_layers(model).layers[layer].register_forward_hook(lambda *given: seen.append(given[-1]))
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        handle.remove()
        return seen[0][0] if isinstance(seen[0], tuple) else seen[0]

    gate = TextGate(lambda texts: torch.tensor([float(text.startswith("w5")) for text in texts]).numpy(), 0.5)
    bare = residual()
    with turned(arena, gate, direction, 2.0) as (same, prompt):
        assert (same, prompt) == (model, "")
        edited = residual()
        said = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(edited[1], bare[1])
    torch.testing.assert_close(edited[0].norm(dim=-1), bare[0].norm(dim=-1))
    expected = bare[0] + 2.0 * bare[0].norm(dim=-1, keepdim=True) * direction
    cosine = torch.nn.functional.cosine_similarity(edited[0], expected, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert torch.equal(residual(), bare), "nothing is left of it"
    again = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(said[1], again[1]), "the tokens after the question keep its row's verdict"
    with turned(arena, gate, direction, 2.0):
        whole = model(input_ids=said, attention_mask=torch.ones_like(said)).logits[0, 3:-1].argmax(dim=-1)
    assert torch.equal(said[0, 4:], whole), "tokens that are decoded one by one are edited as those of a whole row"


@pytest.mark.slow
def test_every_method_is_measured_once_and_leaves_the_model_as_it_was(tmp_path, one_thread):
    arena = tiny_arena()
    before = {name: value.clone() for name, value in arena.setting.model.state_dict().items()}
    run_set(arena, tmp_path, METHODS[:1])
    written = next(tmp_path.glob("*.json")).stat().st_mtime_ns
    run_set(arena, tmp_path)
    assert (tmp_path / "base.json").stat().st_mtime_ns == written
    after = arena.setting.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    cells = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert {cell["method"] for cell in cells} == set(METHODS)
    for cell in cells:
        if cell["method"] != "base":
            assert cell["within"] == (cell["chosen"]["damage"] <= 0.1)
        for part in ("forget", "filler", "paraphrased", "relearned"):
            assert len(cell[part]["rouge"]) == 4
            assert all(0 < p <= 1 and math.isfinite(p) for p in cell[part]["probability"])
    first = next(cell for cell in cells if cell["method"] == OURS)["candidates"][0]
    with fitted(arena.setting, GUARDS[OURS].at(first["strength"])) as guarded:
        again = arena.candidate(first["strength"], guarded).to_dict()
    assert again == pytest.approx(first, abs=1e-5), "as without what is kept of the layers up to the guarded one"
    base = json.loads((tmp_path / "base.json").read_text())
    gated = next(cell for cell in cells if cell["method"] == EMBEDDING)
    assert gated["forget"]["probability"] != base["forget"]["probability"]


def cell_of(method: str, forget: float, attacked: float, general: float = 1.0, right: int = 3) -> dict[str, Any]:
    """A cell in which every question of a part has one figure."""
    values = {"forget": forget, "retain": 1.0, "real_authors": general, "world_facts": general}
    parts = {
        part: {
            "rouge": [values.get(part, attacked)] * 4,
            "probability": [0.5] * 4,
            "said": ["a"],
            "subjects": [*"aabb"],
        }
        for part in PARTS
    }
    chosen = {} if method == "base" else {"chosen": {"strength": 1.0}, "within": True}
    return {"set": "tofu", "method": method, "mmlu": [True] * right + [False], **parts, **chosen}


def test_the_summary_is_written_once_a_set_is_whole_and_the_page_says_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (tmp_path / "cells/tofu").mkdir(parents=True)
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu/epochs.json").write_text("[1.0, 0.25]")
    args = Namespace(cache=tmp_path, sets=SETS, write=True)
    cells = [cell_of("base", 0.9, 0.8), cell_of(EMBEDDING, 0.1, 0.6), cell_of(OURS, 0.2, 0.3)]
    cells += [cell_of("NPO", 0.0, 0.0, general=0.9), cell_of("RMU", 0.0, 0.0, right=2)]
    cells += [cell_of(ALWAYS_ON, 0.5, 0.5), cell_of("refusal prompt", 0.5, 0.5)]
    for number, cell in enumerate(cells):
        assert not (tmp_path / "rivals.json").exists()
        (tmp_path / f"cells/tofu/{number}.json").write_text(json.dumps(cell))
        rivals.summarise(args)
    found = {
        method["method"]: method for method in json.loads((tmp_path / "rivals.json").read_text())["tofu"]["methods"]
    }
    assert list(found) == list(METHODS)
    assert [name for name, one in found.items() if not one["utility_kept"]] == ["NPO", "RMU"]
    assert found["NPO"]["utility_lost"]["general"] == pytest.approx(0.1)
    assert page.best("tofu")["method"] == OURS, "by what is left after the attack that brings back most"
    text = generate.render(WAITING)
    assert "| DSG windowed | 1 | 0.20 (0.20 to 0.20) |" in text
    template = WAITING.read_text()
    assert not generate.bare_numbers(template)
    assert not generate.unused_settings(template)
    results.read_json.cache_clear()


def test_a_row_as_text_is_its_question_and_answer():
    assert as_text(PlainText("Question: a\nAnswer:", "b")) == "Question: a\nAnswer: b"
    assert as_text(PlainText("a text")) == "a text"
