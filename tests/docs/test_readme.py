"""Blocks of code that readers copy, run as they stand: on a tiny model, with a stand-in for the Hub.

All blocks of the README, and those with which the pages of the tasks begin.

What is exchanged: models, tokenizers and SAEs by name are tiny ones, `<commit>` is a commit of the stand-in's, and
which entities a random model knows is said rather than asked.
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hub_requests import OWNER
from pages import DOCS, ROOT, Block, blocks_of, commands
from tiny_entities import entities
from tiny_topic import tiny_parts, topic_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_unlearn import SparseAutoencoder, attach_guardrail, demo, fit_guardrail
from sae_unlearn.alignment import EntitySet, LabeledEntities, SAEAlignmentConfig
from sae_unlearn.cli import inputs as loading
from sae_unlearn.cli.main import main
from sae_unlearn.demo import DemoTexts
from sae_unlearn.evaluation import Fact


TASKS = ("attach", "evaluate", "fit", "train")


def first(page: str, language: str, holding: str = "") -> list[Block]:
    """The first block of a page, in a list; none if there is none."""
    return [b for b in blocks_of(DOCS / f"{page}.md") if b.language == language and holding in b.text][:1]


README = blocks_of(ROOT / "README.md")
BLOCKS = [block for block in README if block.language == "python"]
BLOCKS += [block for page in TASKS for block in first(page, "python")] + first("attach", "python", "record_firings")
COMMANDS = [block for block in README if block.language == "bash" and commands(block)] + first("train", "bash")
REPO = "me/forget-biology"


def parts() -> tuple[Any, Any, SparseAutoencoder]:
    model, tokenizer, sae = tiny_parts()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return model.eval(), tokenizer, sae


def facts(side: str) -> list[Fact]:
    return [Fact(text, ("w5", "w6")) for text in topic_texts(side, 4, seed=2, words=9)]


TEXTS = {"forget": topic_texts("forget", 40), "retain": topic_texts("retain", 64)}


@cache
def fitted_once() -> Any:
    """A model with a guardrail, which is saved and nothing else."""
    return fit_guardrail(*parts(), **TEXTS, progress=False)


@pytest.fixture
def readers_world(stand_in, tmp_path, monkeypatch):
    """The names that a block may use, in a folder with the files that it may read; and the commit to pin."""
    model, tokenizer, sae = parts()
    fitted = fitted_once()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    commit = fitted.push_to_hub(REPO)
    fitted.save_pretrained("forget-biology")

    known, unknown = (entities(side, 30, kind="person") for side in ("known", "unknown"))
    targets = known.sample(4, seed=1)
    targets.to_json("people.json")
    rows = [f"{entity.entity},person,w68" for entity in (*known, *unknown)]
    Path("candidates.csv").write_text("\n".join(["entity,entity_type,colour", *rows]) + "\n")

    def label(model, tokenizer, candidates):
        assert not {entity.entity for entity in candidates} & {entity.entity for entity in targets}
        return LabeledEntities(known.without(targets), unknown, EntitySet(), (), {})

    quickly = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "max_steps": 4, "max_generic_frequency": 1.0}
    monkeypatch.setattr("sae_unlearn.alignment.label_entities", label)
    monkeypatch.setattr("sae_unlearn.alignment.SAEAlignmentConfig", partial(SAEAlignmentConfig, **quickly))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name: parts()[0])
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: parts()[1])
    monkeypatch.setattr(SparseAutoencoder, "from_pretrained", lambda name, **place: parts()[2])
    names = {"model": model, "tokenizer": tokenizer, "sae": sae, "attach_guardrail": attach_guardrail}
    names |= {"forget_texts": TEXTS["forget"], "retain_texts": TEXTS["retain"], "texts": topic_texts("retain", 16)}
    names |= {"facts": facts("forget"), "others": facts("retain")}
    names |= {"name": "tiny", "AutoModelForCausalLM": AutoModelForCausalLM}  # of earlier blocks
    names["inputs"] = tokenizer(topic_texts("forget", 2), return_tensors="pt", padding=True)
    return names, commit.oid


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_it_runs(block, readers_world, capsys):
    names, commit = readers_world
    if "record_firings" in block.text and "attach_guardrail" not in block.text:
        names["model"] = attach_guardrail(names["model"], "forget-biology")
    source = block.text.replace("<commit>", commit)
    exec(compile(source, str(block), "exec"), names)
    if "print(" in source:
        assert capsys.readouterr().out.strip()
    if "push_to_hub" in source:
        assert Path("forget-biology/adapter_config.json").is_file()
    if "save_model" in source:
        assert Path("forget-people/adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_its_commands_run_one_after_the_other(block, readers_world, monkeypatch, capsys):
    names, _ = readers_world
    texts = {"biology": names["forget_texts"], "other": names["retain_texts"], "texts": names["texts"]}
    for name, rows in texts.items():
        Path(f"{name}.txt").write_text("\n\n".join(rows))
    for side in ("known", "unknown"):
        entities(side, 30, kind="person").to_json(f"{side}.json")
    sides = ("forget", "retain")
    held_out = [{side: topic_texts(side, n, seed=3) for side in sides} for n in (6, 2)]
    shipped = DemoTexts(texts["biology"], texts["other"], held_out[0], {s: facts(s) for s in sides}, held_out[1])
    for place in (loading, demo):
        name = "" if place is loading else "demo_"
        monkeypatch.setattr(place, f"load_{name}model", lambda *given: parts()[:2])
        monkeypatch.setattr(place, f"load_{name}sae", lambda *given, **options: parts()[2])
    monkeypatch.setattr(demo, "load_demo_texts", lambda: shipped)
    for call in commands(block):
        assert main([*call, "--no-progress"]) == 0, call
        assert capsys.readouterr().out.strip()
        if "--output" in call:
            assert Path(call[call.index("--output") + 1], "adapter_model.safetensors").is_file()


def test_there_are_blocks():
    assert len([block for block in BLOCKS if block in README]) >= 3
    assert len(BLOCKS) == len([block for block in README if block.language == "python"]) + len(TASKS) + 1
    assert sorted(call[0] for block in COMMANDS for call in commands(block)) == [
        "check",
        "demo",
        "fit",
        "show",
        "train",
    ]


def test_the_readme_is_short_and_holds_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 6000 <= len(text.encode()) <= 8192
    assert '\npip install ".[demo]" && sae-unlearn demo\n' in text
    assert '\npip install ".[test]" && pytest\n' in text
    assert not [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
