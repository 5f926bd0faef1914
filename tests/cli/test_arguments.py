"""The command line comes from the options: arguments, help texts, files of options, one name for one thing."""

import argparse
import json

import pytest
import yaml

from sae_unlearn import GuardrailFitConfig
from sae_unlearn.cli.arguments import options_from
from sae_unlearn.cli.main import COMMANDS, build_parser, main
from sae_unlearn.options.evaluation import AuditConfig, EvaluationConfig, PictureConfig
from sae_unlearn.options.field import options_of
from sae_unlearn.options.train import TrainOptions


COMMAND_OPTIONS = {
    "fit": GuardrailFitConfig,
    "train": TrainOptions,
    "evaluate": EvaluationConfig,
    "audit": AuditConfig,
    "show": PictureConfig,
}
PARSERS = next(a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
EVERY = [
    pytest.param(command, each, id=f"{command} {each.name}")
    for command, options in COMMAND_OPTIONS.items()
    for each in options_of(options)
    if each.command_line
]
LEAST = {
    "fit": ["fit", "--model=m", "--sae=s", "--output=o"],
    "train": ["train", "--model=m", "--sae=s", "--targets=t", "--output=o"],
    "evaluate": ["evaluate", "--model=m", "--output=o"],
    "audit": ["audit", "--model=m", "--forget", "f", "--output=o"],
    "show": ["show", "--adapter=a"],
}


def flags(parser):
    """The arguments of a command by their long name."""
    return {flag: action for action in parser._actions for flag in action.option_strings if flag.startswith("--")}


@pytest.mark.parametrize(("command", "each"), EVERY)
def test_every_option_is_an_argument_with_its_default_help_and_choices(command, each):
    action = flags(PARSERS[command])[each.flag]
    assert action.default == each.default
    assert action.help % vars(action) == each.sentence
    assert each.help
    assert tuple(action.choices or ()) == each.choices
    assert (action.nargs == "+") == each.several
    if each.kind is bool:
        assert f"--no-{each.flag[2:]}" in action.option_strings


@pytest.mark.parametrize("command", COMMAND_OPTIONS)
def test_a_command_without_options_has_the_defaults(command):
    options = COMMAND_OPTIONS[command]
    assert options_from(build_parser().parse_args(LEAST[command]), options) == options()


def test_what_a_command_is_given_arrives():
    more = (
        "--num-features 7 --no-sticky --features 1,2 3 --evidence any --clamp-value -500 --refusal no --action refuse"
    )
    args = build_parser().parse_args([*LEAST["fit"], *more.split()])
    assert options_from(args, GuardrailFitConfig, progress=False) == GuardrailFitConfig(
        num_features=7,
        sticky=False,
        features=[1, 2, 3],
        evidence="any",
        clamp_value=-500.0,
        refusal="no",
        action="refuse",
        progress=False,
    )


# -------------------------------------------------------------------------------------------- one name for one thing


def test_one_name_means_one_thing_in_all_commands():
    seen = {}
    for command, parser in PARSERS.items():
        for flag, action in flags(parser).items():
            kind = (type(action).__name__, action.type, action.metavar, tuple(action.choices or ()))
            if flag not in ("--unknown", "--retain", "--forget", "--preset", "--help"):
                assert seen.setdefault(flag, (command, kind))[1] == kind, (flag, command, seen[flag])


@pytest.mark.parametrize("command", PARSERS)
def test_what_a_command_reads_has_the_same_names_everywhere(command):
    known = set(flags(PARSERS[command]))
    for thing in ("model", "adapter", "sae"):
        assert (f"--{thing}" in known) == (f"--{thing}-revision" in known), thing
    assert not known & {"--revision", "--subfolder", "--guardrail-revision", "--source"}
    assert {"--config", "--progress", "--debug"} <= known
    assert known >= {"--device", "--dtype"} or "--model" not in known


@pytest.mark.parametrize("command", PARSERS)
def test_help_is_in_groups(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert "general:" in headings
    assert len(headings) == len(set(headings)) > 3
    alone = [a.option_strings for a in PARSERS[command]._optionals._group_actions]
    assert alone == [["-h", "--help"]]


def test_model_and_adapter_are_given_by_place_or_by_name(capsys):
    parse = build_parser().parse_args
    for call in (["check", "m", "a"], ["check", "--model", "m", "--adapter", "a"], ["check", "m", "--adapter=a"]):
        args = parse(call)
        assert (args.model, args.adapter) == ("m", "a")
    assert parse(["check", "--model=x", "--adapter=a", "--model=m"]).model == "m"  # the last one counts, as usual
    assert parse(["show", "a"]).adapter == parse(["show", "--adapter", "a"]).adapter == "a"
    for call, said in (
        (["check", "m"], "required: --adapter"),
        (["show"], "required: --adapter"),
        (["show", "a", "--adapter", "b"], "adapter is passed twice: a and b"),
        (["fit", "--mod", "m", "--sae", "s", "--output", "o"], "--model"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse(call)
        assert said in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- --config FILE


def parsed(monkeypatch, call):
    """The arguments with which a command runs."""
    seen = []
    monkeypatch.setattr(COMMANDS[call[0]], "run", lambda args: seen.append(args) or 0)
    assert main(call) == 0
    return seen[0]


SETTINGS = {
    "model": "demo",
    "sae": "demo",
    "output": "out",
    "forget": ["a.txt", "b.txt"],
    "num-features": 7,
    "features": [3, 1],
    "clamp_value": -500,
    "margin": 1e-3,
    "chat_template": True,
    "sticky": False,
    "private": False,
    "refusal": "--no. It is",
    "layer": None,
}


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump], ids=["json", "yaml"])
def test_a_file_gives_the_same_as_the_command_line(tmp_path, monkeypatch, capsys, write):
    path = tmp_path / f"options.{'json' if write is json.dumps else 'yaml'}"
    path.write_text(write(SETTINGS))
    args = parsed(monkeypatch, ["fit", "--config", str(path)])
    expected = options_from(args, GuardrailFitConfig)
    assert expected == GuardrailFitConfig(
        num_features=7,
        features=[3, 1],
        clamp_value=-500.0,
        margin=1e-3,
        chat_template=True,
        sticky=False,
        refusal="--no. It is",
    )
    assert (args.model, args.forget, args.private) == ("demo", ["a.txt", "b.txt"], False)


def test_the_command_line_wins_over_the_file(tmp_path, monkeypatch):
    path = tmp_path / "options.json"
    path.write_text(json.dumps(SETTINGS))
    call = ["fit", f"--config={path}", "--num-features=9", "--no-chat-template", "--forget", "c.txt"]
    args = parsed(monkeypatch, call)
    assert (args.num_features, args.chat_template, args.forget) == (9, False, ["c.txt"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"num_feature": 3}', "num_feature: expected an option of sae-unlearn fit"),
        ('{"help": true}', "help: expected an option of sae-unlearn fit"),
        ('{"num_features": "many"}', "argument --num-features: invalid int value: 'many'"),
        ('{"num_features": [3]}', "num_features=[3]: expected a number or a text"),
        ('{"num_features": true}', "num_features=True: expected a number or a text"),
        ('{"chat_template": "yes"}', "chat_template='yes': expected true or false"),
        ('{"statistic": "mean"}', "invalid choice: 'mean'"),
        ("[1]", "it holds a list"),
        ("{", "Expecting property name"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, capsys, text, said):
    path = tmp_path / "options.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main([*LEAST["fit"], "--config", str(path)])
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*LEAST["fit"], "--config", str(tmp_path / "none.json")])
    assert "none.json" in capsys.readouterr().err
