"""Every cell of the notebooks in `examples/`, run on a tiny random model in the place of the demo's."""

import json
from functools import partial
from pathlib import Path

import pytest
from pages import ROOT
from tiny_entities import entities
from tiny_topic import tiny_parts, topic_texts

from sae_unlearn import demo
from sae_unlearn.alignment import LabeledEntities, SAEAlignmentConfig
from sae_unlearn.demo import DemoTexts
from sae_unlearn.evaluation import Fact


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SIDES = ("forget", "retain")


@pytest.fixture
def tiny_demo(tmp_path, monkeypatch):
    """The demo's parts, and a working folder, for a notebook."""
    model, tokenizer, sae = tiny_parts()
    texts = DemoTexts(
        topic_texts("forget", 40),
        topic_texts("retain", 64),
        {side: topic_texts(side, 6, seed=1) for side in SIDES},
        {side: [Fact(text, ("w5", "w6")) for text in topic_texts(side, 5, seed=2, words=9)] for side in SIDES},
        {side: topic_texts(side, 2, seed=3, words=10) for side in SIDES},
    )
    monkeypatch.setattr(demo, "load_demo_model", lambda: (model, tokenizer))
    monkeypatch.setattr(demo, "load_demo_sae", lambda: sae)
    monkeypatch.setattr(demo, "load_demo_texts", lambda: texts)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny_cities(tmp_path, monkeypatch):
    """Cities with names of the tiny model's words, told apart by their last word instead of by asking."""
    known, unknown = (entities(side, 30, kind="city") for side in ("known", "unknown"))
    rows = [f"{city.entity},city,w68" for city in (*known, *unknown)]
    (tmp_path / "cities.csv").write_text("\n".join(["entity,entity_type,country", *rows]) + "\n")

    def label(model, tokenizer, candidates, min_known, cache):
        assert [city.entity for city in candidates] == [city.entity for city in (*known, *unknown)]
        return LabeledEntities(candidates[:30], candidates[30:], candidates[:0], (), {"min_known": min_known})

    quick = partial(SAEAlignmentConfig, use_cpu=True, disable_tqdm=True, max_generic_frequency=1.0)
    monkeypatch.setattr("sae_unlearn.alignment.label_entities", label)
    monkeypatch.setattr("sae_unlearn.alignment.SAEAlignmentConfig", quick)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_runs(notebook, tiny_demo, tiny_cities, tmp_path, capsys):
    names: dict = {}
    for number, source in enumerate(code_cells(notebook), 1):
        exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), names)
    saved = tmp_path / {"forget_a_topic": "forget-biology", "forget_entities": "forget-cities"}[notebook.stem]
    assert (saved / "adapter_config.json").is_file()
    assert (saved / "README.md").is_file()
    assert capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_hold_no_output(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
