"""Options stand once: signatures, command line, files of options and help texts come from the same dataclasses."""

import argparse
import inspect
import json
from dataclasses import fields

import pytest
import yaml

from sae_unlearn import GuardrailFitConfig, SAEAlignmentConfig, fit_guardrail, fit_guardrails, label_entities
from sae_unlearn.cli.arguments import options_from
from sae_unlearn.cli.main import COMMANDS, build_parser, main
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import audit, evaluate, picture_guardrail
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.options.evaluation import AuditConfig, EvaluationConfig, PictureConfig
from sae_unlearn.options.field import options_of
from sae_unlearn.options.fit import FIXED, PRESETS
from sae_unlearn.options.train import TrainOptions


COMMAND_OPTIONS = {
    "fit": GuardrailFitConfig,
    "train": TrainOptions,
    "evaluate": EvaluationConfig,
    "audit": AuditConfig,
    "show": PictureConfig,
}
FUNCTIONS = {
    fit_guardrail: GuardrailFitConfig,
    fit_guardrails: GuardrailFitConfig,
    evaluate: EvaluationConfig,
    audit: AuditConfig,
    picture_guardrail: PictureConfig,
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


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_signature_shows_the_options_with_their_defaults(function):
    known = inspect.signature(function).parameters
    assert "options" not in known
    for each in options_of(FUNCTIONS[function]):
        assert known[each.name].default == each.default
        assert known[each.name].kind is inspect.Parameter.KEYWORD_ONLY


def test_an_option_that_there_is_not_is_named():
    for function, options in FUNCTIONS.items():
        given = [
            {"a": ["w"]} if name == "forget" else None for name in ("model", "tokenizer", "sae", "forget", "retain")
        ]
        given = given if "sae" in inspect.signature(function).parameters else [given[0], given[1], *given[3:]]
        with pytest.raises(UnlearnError, match=f"'batch_sizes'.* {options.__name__}.*'batch_size'"):
            function(*given, batch_sizes=3)


def test_choices_are_those_of_the_guardrail():
    known = {each.name: each.choices for each in options_of(GuardrailFitConfig)}
    for name, allowed in CHOICES.items():
        assert name not in known or set(known[name]) == set(allowed), name
    assert set(known["importance"]) == {"mean_squared", "squared_mean"}
    assert set(known["preset"]) == {*PRESETS} - {None}


def test_defaults_are_those_of_the_guardrail_where_it_has_them():
    own = {each.name: each.default for each in fields(SAEGuardrailConfig)}
    for name in ("statistic", "gate_scope", "sticky", "action"):
        assert own[name] == getattr(GuardrailFitConfig(), name), name


def test_help_shows_what_a_preset_sets():
    shown = {each.name: each.shown for each in options_of(GuardrailFitConfig)}
    for name, value in PRESETS[None].items():
        assert shown[name] == "; faithful: ".join(
            f"{v:g}" if isinstance(v, float) else str(v) for v in (value, PRESETS["faithful"][name])
        )
    assert set(FIXED) <= set(PRESETS)


def test_the_settings_of_an_alignment_have_the_defaults_of_the_command():
    settings = {each.name: each.default for each in fields(SAEAlignmentConfig)}
    assert settings["per_device_train_batch_size"] == TrainOptions.batch_size
    apart = {"batch_size", "lora_rank", "resume", "min_known", "eval_steps", "save_steps"}
    for each in options_of(TrainOptions):
        assert each.name in apart or settings[each.name] == each.default, each.name
    assert inspect.signature(label_entities).parameters["min_known"].default == TrainOptions.min_known


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
