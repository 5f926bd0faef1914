"""`sae-unlearn evaluate` on a tiny model."""

import json

import pytest
from tiny_topic import save_adapters, tiny_parts, topic_texts
from transformers import AutoModelForCausalLM

from sae_unlearn import attach_guardrail, save_bundle
from sae_unlearn.cli.data_sets import read_sets
from sae_unlearn.cli.main import main
from sae_unlearn.evaluation import Report, compare, evaluate


TEXTS = topic_texts("retain", 6)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, a guardrail, a LoRA, and data."""
    folder = tmp_path_factory.mktemp("parts")
    save_adapters(folder)
    facts = [{"prompt": text, "answers": ["w3", "w4"]} for text in topic_texts("forget", 5, words=5)]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    return folder


def arguments(parts, output, *more):
    named = [f"--model={parts / 'model'}", f"--output={output}", "--forget", parts / "facts.json"]
    return [str(x) for x in ["evaluate", *named, "--retain", parts / "texts.json", "--no-progress", *more]]


@pytest.mark.slow
def test_it_writes_a_report(parts, tmp_path, capsys):
    assert main(arguments(parts, tmp_path)) == 0
    said = capsys.readouterr().out
    assert "| forget | facts.json | recall, any accepted answer |" in said
    assert "report.md" in said
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.png"}
    report = Report.load(tmp_path)
    assert report.find("perplexity", "retain", "texts.json").estimate.n == 6
    assert str(parts) not in (tmp_path / "report.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["guardrail", "lora"])
def test_with_and_without_an_adapter(parts, tmp_path, capsys, adapter):
    assert main(arguments(parts, tmp_path, f"--adapter={parts / adapter}", "--compare")) == 0
    assert "| side | data | measure | before | after | change | n |" in capsys.readouterr().out
    before, after = Report.load(tmp_path / "before"), Report.load(tmp_path)
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored == json.loads(json.dumps(compare(before, after).to_dict()))
    changes = {one["metric"]: one["change"]["value"] for one in stored["changes"]}
    assert set(changes) == {"exact_recall", "alias_recall", "rouge_l_recall", "rouge_l_f1", "refusals", "perplexity"}
    only = {one["metric"] for one in stored["only_after"]}
    assert only == ({"kl", "fires:default"} if adapter == "guardrail" else {"kl"})
    assert after.find("kl", "retain").estimate.value >= 0


@pytest.mark.slow
def test_a_bundle_is_put_on_as_a_whole(parts, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(parts / "model")
    save_bundle(attach_guardrail(model, parts / "guardrail", adapter_name="topic"), tmp_path / "bundle")
    assert main(arguments(parts, tmp_path / "out", f"--adapter={tmp_path / 'bundle'}", "--limit=4")) == 0
    assert "fires:topic" in {figure.metric for figure in Report.load(tmp_path / "out").figures}


def test_it_says_what_the_library_says(parts, tmp_path):
    assert main(arguments(parts, tmp_path, f"--adapter={parts / 'guardrail'}", "--max-new-tokens=3", "--limit=4")) == 0
    model, tokenizer, _ = tiny_parts()
    guarded = attach_guardrail(model, parts / "guardrail")
    sets = {
        side: read_sets([str(parts / f"{name}.json")], limit=4)
        for side, name in (("forget", "facts"), ("retain", "texts"))
    }
    assert [len(rows) for each in sets.values() for rows in each.values()] == [4, 4]
    expected = evaluate(guarded, tokenizer, **sets, max_new_tokens=3, progress=False)
    assert Report.load(tmp_path).figures == expected.figures


def test_sets_are_named_without_their_folders(parts, tmp_path):
    rows = [{"question": "q?", "answer": "a", "perturbed_answer": ["b"]}]
    (tmp_path / "forget01.json").write_text(json.dumps(rows))
    found = read_sets([f"tofu:forget01@{tmp_path}", f"tofu-choices:forget01@{tmp_path}"])
    assert {name: len(rows) for name, rows in found.items()} == {"tofu:forget01": 1, "tofu-choices:forget01": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--compare"], "Pass --adapter"),
        (["--adapter=nobody/nothing"], "neither a folder with an adapter nor one on the Hub"),
        (["--limit=0"], "--limit=0"),
        (["--reference=nowhere"], "source='nowhere'"),
        (["--batch-size=0"], "batch_size=0"),
        (["--forget", "nowhere.json"], "nowhere.json does not exist"),
        (["--forget", "tofuu:forget10"], "Did you mean 'tofu'"),
        (["--forget", "relation:x"], "name='relation:x'"),
        (["--forget", "wmdp:bio"], "source='cais/wmdp'"),
    ],
)
def test_bad_input_is_one_line(parts, tmp_path, capsys, change, said):
    assert main(arguments(parts, tmp_path, *change)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae-unlearn")]
    assert len(lines) == 1
    assert said in lines[0]


def test_nothing_to_measure_is_said(parts, tmp_path, capsys):
    assert main(["evaluate", f"--model={parts / 'model'}", f"--output={tmp_path}"]) == 2
    assert "Pass --forget, --retain" in capsys.readouterr().err


def test_the_same_set_twice_is_refused(parts, tmp_path, capsys):
    again = str(parts / "texts.json")
    assert main(arguments(parts, tmp_path, "--retain", again, again)) == 2
    assert "two sets are called 'texts.json'" in capsys.readouterr().err
