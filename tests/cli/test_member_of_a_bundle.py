"""`--adapter-subfolder` of evaluate, audit and check: one member of a bundle, measured alone."""

import json

import pytest
from peft import PeftModel
from tiny_topic import save_adapters, topic_texts
from transformers import AutoModelForCausalLM

from sae_unlearn import attach_guardrail, save_bundle
from sae_unlearn.cli.main import main
from sae_unlearn.evaluation import AuditReport, Report


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, `bundle` (the guardrails `topic` and `other`, the LoRA `aligned`), and data."""
    folder = tmp_path_factory.mktemp("parts")
    save_adapters(folder)
    bare = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = PeftModel.from_pretrained(bare, folder / "lora", adapter_name="aligned")
    for name in ("topic", "other"):
        model = attach_guardrail(model, folder / "guardrail", adapter_name=name)
    save_bundle(model, folder / "bundle")
    facts = [{"prompt": text, "answers": ["w3", "w4"]} for text in topic_texts("forget", 4, words=5)]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "texts.json").write_text(json.dumps(topic_texts("retain", 20)))
    return folder


def measuring(command, parts, output, *more):
    named = [command, "--model", parts / "model", "--output", output, "--forget", parts / "facts.json"]
    return [str(x) for x in [*named, "--max-new-tokens=2", "--no-progress", *more]]


def evaluated(parts, output, *more):
    """The metrics of the rows' firings, by the adapters' names."""
    assert main(measuring("evaluate", parts, output, *more)) == 0
    return {figure.metric for figure in Report.load(output).figures if figure.metric.startswith("fires:")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topic", "other", "topic/"])
def test_evaluate_measures_one_guardrail(parts, tmp_path, name):
    found = evaluated(parts, tmp_path, "--adapter", parts / "bundle", "--adapter-subfolder", name)
    assert found == {f"fires:{name.strip('/')}"}


def test_evaluate_measures_the_lora_alone(parts, tmp_path):
    retain = ["--retain", parts / "texts.json", "--limit=4"]
    assert evaluated(parts, tmp_path, "--adapter", parts / "bundle", "--adapter-subfolder", "aligned", *retain) == set()
    assert Report.load(tmp_path).find("kl", "retain").estimate.value > 0


@pytest.mark.parametrize("name", ["guardrail", "lora"])
def test_a_folder_in_what_is_no_bundle_does_as_well(parts, tmp_path, name):
    found = evaluated(parts, tmp_path, "--adapter", parts, "--adapter-subfolder", name)
    assert found == ({"fires:default"} if name == "guardrail" else set())


def test_audit_attacks_one_member(parts, tmp_path):
    some = ["--attacks", "dilution", "--lengths", "4", "--adapter", parts / "bundle", "--adapter-subfolder", "other"]
    assert main(measuring("audit", parts, tmp_path, *some)) == 0
    assert AuditReport.load(tmp_path).about["adapters"] == "other (SAE_GUARDRAIL)"


def test_check_looks_at_one_member(parts, capsys):
    call = [
        "check",
        parts / "model",
        parts / "bundle",
        "--adapter-subfolder",
        "topic",
        "--retain",
        parts / "texts.json",
    ]
    assert main([str(x) for x in [*call, "--no-progress"]]) == 0
    assert "ok       base model" in capsys.readouterr().out


def said(capsys):
    """The one line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae-unlearn")]
    assert len(lines) == 1
    return lines[0]


def test_check_of_a_bundle_names_the_option(parts, capsys):
    assert main(["check", str(parts / "model"), str(parts / "bundle")]) == 2
    message = said(capsys)
    assert "Pass --adapter-subfolder" in message
    assert "of the guardrails topic, other" in message


@pytest.mark.parametrize("command", ["evaluate", "audit"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--adapter={bundle}", "--adapter-subfolder=nobody"],
            "['nobody']: expected some of ['topic', 'other', 'aligned'], the members of {bundle}",
        ),
        (
            ["--adapter={parts}", "--adapter-subfolder=nobody"],
            "--adapter {parts} --adapter-subfolder nobody is neither a folder",
        ),
        (["--adapter={bundle}", "--adapter-subfolder=../lora"], "without '..'"),
        (["--adapter-subfolder=topic"], "Pass --adapter"),
    ],
)
def test_what_is_not_there_is_named(parts, tmp_path, capsys, command, options, message):
    places = {"parts": parts, "bundle": parts / "bundle"}
    call = measuring(command, parts, tmp_path, *(option.format(**places) for option in options))
    assert main(call) == 2
    assert message.format(**places) in said(capsys)
