"""`sae-unlearn audit` on a tiny model."""

import json

import pytest
from tiny_topic import save_adapters, tiny_parts, topic_texts

from sae_unlearn import attach_guardrail
from sae_unlearn.cli.data_sets import read_sets
from sae_unlearn.cli.main import main
from sae_unlearn.evaluation import AuditReport, audit


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, a guardrail, a LoRA, and data."""
    folder = tmp_path_factory.mktemp("parts")
    save_adapters(folder)
    for side in ("forget", "retain"):
        facts = [{"prompt": text, "answers": ["w3", "w4"]} for text in topic_texts(side, 4, words=5)]
        (folder / f"{side}.json").write_text(json.dumps(facts))
    (folder / "near.json").write_text(json.dumps(topic_texts("retain", 4, seed=2)))
    (folder / "filler.json").write_text(json.dumps(topic_texts("retain", 4, seed=7)))
    return folder


def arguments(parts, output, *more):
    named = [f"--model={parts / 'model'}", f"--output={output}", "--forget", parts / "forget.json"]
    quick = ["--retain", parts / "retain.json", "--max-new-tokens=2", "--no-progress"]
    return [str(x) for x in ["audit", *named, *quick, *more]]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["guardrail", "lora"])
def test_it_writes_a_report_and_the_card(parts, tmp_path, capsys, adapter):
    folder = parts / adapter
    some = ["--attacks", "dilution", "removal", "--lengths", "4", "8", "--neighbors", parts / "near.json"]
    assert main(arguments(parts, tmp_path, f"--adapter={folder}", f"--card={folder}", *some)) == 0
    said = capsys.readouterr().out
    assert "| dilution | after, 8 words |" in said
    assert "| near: near.json | perplexity |" in said
    assert {path.name for path in tmp_path.iterdir()} == {"audit.json", "audit.md", "audit.png"}
    assert str(parts) not in (tmp_path / "audit.json").read_text()
    card = (folder / "README.md").read_text()
    assert card.count("\n## Audit\n") == 1
    assert "[tables](audit/audit.md)" in card
    fires = {row.fires() is not None for row in AuditReport.load(tmp_path).rows if row.attack == "dilution"}
    assert fires == {adapter == "guardrail"}


@pytest.mark.slow
def test_it_says_what_the_library_says(parts, tmp_path):
    some = ["--attacks", "dilution", "spelling", "--lengths", "4", "--filler", parts / "filler.json", "--seed=3"]
    assert main(arguments(parts, tmp_path, f"--adapter={parts / 'guardrail'}", "--limit=3", *some)) == 0
    model, tokenizer, _ = tiny_parts()
    sets = {side: read_sets([str(parts / f"{side}.json")], limit=3, seed=3) for side in ("forget", "retain")}
    expected = audit(
        attach_guardrail(model, parts / "guardrail"),
        tokenizer,
        **sets,
        attacks=["dilution", "spelling"],
        lengths=(4,),
        filler=topic_texts("retain", 4, seed=7),
        seed=3,
        max_new_tokens=2,
        progress=False,
    )
    assert AuditReport.load(tmp_path).rows == expected.rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--attacks", "prayer"], "attacks='prayer'"),
        (["--limit=0"], "--limit=0"),
        (["--card=nowhere"], "--card nowhere"),
        (["--adapter=nobody/nothing"], "neither a folder with an adapter nor one on the Hub"),
        (["--filler=nowhere.txt"], "nowhere.txt does not exist"),
        (["--attacks", "dilution", "--lengths", "-4"], "lengths=-4"),
    ],
)
def test_bad_input_is_one_line(parts, tmp_path, capsys, change, said):
    assert main(arguments(parts, tmp_path, *change)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae-unlearn")]
    assert len(lines) == 1
    assert said in lines[0]


def test_texts_are_not_attacked(parts, tmp_path, capsys):
    assert main(arguments(parts, tmp_path, "--forget", str(parts / "near.json"))) == 2
    assert "forget['near.json']: expected Fact or Choice, got str" in capsys.readouterr().err
