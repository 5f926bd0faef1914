"""`sae-unlearn train` on a tiny model."""

import json

import pytest
from peft import PeftModel
from tiny_entities import entities
from tiny_topic import save_parts, topic_texts
from transformers import AutoModelForCausalLM

from sae_unlearn.alignment import EntitySet
from sae_unlearn.alignment.labeling.answer_log import Asked
from sae_unlearn.alignment.labeling.result import LabeledEntities
from sae_unlearn.cli.main import main


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, `sae`, entities and texts."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    known = entities("known", 36, kind="city")
    known.sample(4, seed=1).to_json(folder / "targets.json")
    known.to_json(folder / "known.json")
    entities("unknown", 24, kind="city").to_json(folder / "unknown.json")
    (folder / "retain.json").write_text(json.dumps(topic_texts("retain", 24, words=6)))
    return folder


def arguments(parts, output, *more):
    """A few steps of training."""
    few = ["--init=zero", "--max-steps=12", "--learning-rate=0.01", "--batch-size=4"]
    return solving(parts, output, *few, *more)


def solving(parts, output, *more):
    """The recipe that is the default."""
    named = [
        f"--{name}={parts / file}"
        for name, file in {
            "model": "model",
            "sae": "sae",
            "targets": "targets.json",
            "known": "known.json",
            "unknown": "unknown.json",
            "retain": "retain.json",
        }.items()
    ]
    return ["train", *named, f"--output={output}", "--no-progress", *map(str, more)]


@pytest.mark.slow
def test_train_writes_a_lora_its_card_and_its_picture(parts, tmp_path, capsys):
    assert main(arguments(parts, tmp_path, "--min-separation=0", "--seed=1")) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "README.md", "alignment.png"}
    said = capsys.readouterr().out
    assert "Separation on held-out entities (AUC)" in said
    assert "distance to unknown entities" in said
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parts / "model"), tmp_path)
    assert {"0", "1"} == {n.split("layers.")[1][0] for n, _ in model.named_parameters() if "lora_" in n}
    card = (tmp_path / "README.md").read_text()
    assert "4 entities of type `city`" in card
    assert "KL(base, tuned)" in card
    assert str(parts) not in card, "a local path says nothing to others"
    assert "sha256" in card
    assert not any(name in card for name in entities("known", 36, kind="city").sample(4, seed=1).names)


@pytest.mark.slow
def test_train_solves_without_a_step(parts, tmp_path, capsys):
    more = [f"--covariance-cache={tmp_path / 'kept'}", "--retain-budget=0.5"]
    assert main(solving(parts, tmp_path / "out", "--min-separation=0", *more)) == 0
    assert "part of the way to unknown entities that is left" in capsys.readouterr().out
    assert list((tmp_path / "kept").iterdir())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parts / "model"), tmp_path / "out")
    changed = [n for n, p in model.named_parameters() if "lora_B" in n and p.abs().max() > 0]
    assert changed
    assert all("down_proj" in name for name in changed)


def test_what_needs_steps_is_refused_where_the_lora_is_only_solved_for(parts, tmp_path, capsys):
    for more in ("--num-train-epochs=1", "--eval-steps=5", "--save-steps=5"):
        assert main(solving(parts, tmp_path / "out", "--min-separation=0", more)) == 2
        said = capsys.readouterr().err
        assert more.lstrip("-").split("=")[0].replace("-", "_").replace("eval_steps", "eval_strategy") in said
        assert 'init="zero"' in said


def test_train_says_what_is_wrong_in_one_line(parts, tmp_path, capsys):
    for more, said in (
        (["--min-separation=1"], "min_separation=1: "),
        (["--sae=none"], "Set layer="),
        (["--targets=nowhere.json"], "nowhere.json"),
    ):
        assert main(arguments(parts, tmp_path, *more)) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae-unlearn")]
        assert len(lines) == 1
        assert said in lines[0]
    few = [a for a in arguments(parts, tmp_path) if not a.startswith(("--known", "--unknown"))]
    assert main(few) == 2
    assert "--candidates" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("more", "min_known"), [([], None), (["--min-known=1"], 1)])
def test_candidates_are_labeled_by_the_librarys_rule_and_told_as_a_table(
    parts, tmp_path, capsys, monkeypatch, more, min_known
):
    known, unknown = (EntitySet.from_file(parts / f"{name}.json") for name in ("known", "unknown"))
    EntitySet([*known, *unknown]).to_json(tmp_path / "candidates.json")
    seen = {}

    def label(model, tokenizer, candidates, **options):
        seen.update(options)
        answers = [
            Asked(entity.entity, "city", "country", "?", ("w3",), ("w3", "w4"), int(entity.entity in known.names))
            for entity in candidates
        ]
        return LabeledEntities(candidates.without(unknown), unknown, candidates[:0], tuple(answers), {})

    monkeypatch.setattr("sae_unlearn.alignment.label_entities", label)
    given = [a for a in arguments(parts, tmp_path) if not a.startswith(("--known", "--unknown"))]
    assert main([*given, f"--candidates={tmp_path / 'candidates.json'}", "--min-separation=0", *more]) == 0
    assert seen["min_known"] == min_known
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["candidates", "known", "unknown", "dropped"] in lines
    assert ["city", "32", "24", "0"] in lines
    assert ["country:", "answers", "that", "match", "50%", "0%"] in lines
