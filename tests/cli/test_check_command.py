"""`sae-unlearn check` on a tiny model."""

import shlex

import pytest
import torch
from commands import fails
from transformers import AutoModelForCausalLM

from sae_unlearn.cli.main import build_parser, main


def check(parts, folder, *more, model="model"):
    texts = ["--retain", parts / "other.csv", "--text-column", "body"] if "--retain" not in more else []
    return [str(x) for x in ["check", parts / model, folder, *texts, "--no-progress", *more]]


def test_check_finds_nothing_wrong(parts, capsys):
    code = main(check(parts, parts / "fitted"))
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "ok       base model" in printed
    assert "as at the fit (statistics equal to 0.000)" in printed
    assert "\nNo problems.\n" in printed


def test_check_with_forget_text(parts, capsys):
    arguments = check(parts, parts / "fitted", "--forget", parts / "more.jsonl", "--retain", parts / "retain.json")
    main(arguments)
    printed = capsys.readouterr().out
    assert "of 8 rows of the forget text" in printed
    assert "of 80 rows of the other text; at most 2.50%" in printed
    assert "measured here" in printed


def test_check_falls_back_on_the_shipped_texts(parts, capsys):
    main([str(x) for x in ["check", parts / "model", parts / "fitted", "--no-progress"]])
    assert "neutral paragraphs of this package" in capsys.readouterr().out


def test_check_tells_another_model(parts, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(parts / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "model")
    for file in (parts / "model").glob("token*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    assert main([str(x) for x in ["check", tmp_path / "model", parts / "fitted", "--no-progress"]]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM  base model: The guardrail was fitted on" in printed
    assert "\nNext: sae-unlearn fit --model" in printed


@pytest.mark.parametrize(
    ("problems", "command", "among"),
    [
        (set(), "evaluate", "--adapter"),
        ({"fires"}, "tune", "a-tuned"),
        ({"quiet"}, "fit", "traffic.txt"),
        ({"quiet", "fires"}, "fit", "traffic.txt"),
        ({"dose", "fires"}, "fit", "--clamp-scale"),
        ({"margin", "dose"}, "scout", "traffic.txt"),
        ({"margin", "seal"}, "fit", "FOLDER"),
        ({"shape"}, "fit", "FOLDER"),
    ],
)
def test_the_next_command_is_about_the_worst_problem(problems, command, among):
    from sae_unlearn.cli.check import next_step

    args = build_parser().parse_args(["check", "m", "of/a", "--forget", "topic.txt", "--retain", "traffic.txt"])
    args.problems = problems
    program, name, *rest = shlex.split(next_step(args))
    assert (program, name) == ("sae-unlearn", command)
    assert among in rest
    build_parser().parse_args([name, *rest])


@pytest.mark.parametrize(
    ("problems", "words"),
    [
        (set(), []),
        ({"server"}, ["serve", "base", "--adapter", "of/a"]),
        ({"guardrail", "on the topic"}, ["serve", "base", "--adapter", "of/a"]),
        ({"forget 3", "on the topic"}, ["check", "--model", "base", "--adapter", "of/a"]),
        ({"on the topic"}, ["tune", "--adapter", "of/a", "--target-recall", "0.9", "--output", "a-tuned"]),
        ({"on the topic", "other text"}, ["fit", "--retain", "OTHER", "traffic.txt"]),
    ],
)
def test_after_a_server_failed_the_next_command_is_about_the_worst_problem(problems, words):
    from sae_unlearn.cli.check import next_step

    given = ["--url", "http://localhost:1", "--adapter", "of/a", "--retain", "traffic.txt"]
    args = build_parser().parse_args(["check", *given])
    args.problems, args.base = problems, "base"
    found = shlex.split(next_step(args))
    if not words:
        assert found == []
        return
    assert found[:2] == ["sae-unlearn", words[0]]
    assert {*words} <= {*found}
    build_parser().parse_args(found[1:])


def test_check_refuses_bad_input(parts, tmp_path, capsys):
    fails(capsys, check(parts, tmp_path / "nothing"), "neither a folder here nor")
    fails(capsys, check(parts, parts / "fitted", "--forget", "none.txt"), "none.txt does not exist")
    fails(capsys, check(parts, parts / "fitted", model="missing"), "missing")
