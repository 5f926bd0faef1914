"""Options stand once: signatures, defaults, choices and presets come from the same dataclasses."""

import inspect
from dataclasses import fields

import numpy
import pytest
import torch
from transformers import HfArgumentParser

from sae_unlearn import GuardrailFitConfig, SAEAlignmentConfig, fit_guardrail, fit_guardrails, label_entities
from sae_unlearn.alignment.config import PRESETS as ALIGNMENT_PRESETS
from sae_unlearn.alignment.loss import AWAY, TOWARD
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import audit, evaluate, picture_guardrail
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.options.alignment import AlignmentOptions
from sae_unlearn.options.evaluation import AuditConfig, EvaluationConfig, PictureConfig
from sae_unlearn.options.field import options_of
from sae_unlearn.options.fit import FIXED, PRESETS
from sae_unlearn.options.scout import ScoutConfig
from sae_unlearn.options.train import TrainOptions
from sae_unlearn.options.train_sae import SAETrainingConfig


FUNCTIONS = {
    fit_guardrail: GuardrailFitConfig,
    fit_guardrails: GuardrailFitConfig,
    evaluate: EvaluationConfig,
    audit: AuditConfig,
    picture_guardrail: PictureConfig,
}


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


CONFIGS = (
    GuardrailFitConfig,
    AlignmentOptions,
    EvaluationConfig,
    AuditConfig,
    PictureConfig,
    ScoutConfig,
    SAETrainingConfig,
)
WRONG = {
    bool: ("yes", 1),
    int: (True, 1.5, "3"),
    float: (True, "3", float("nan"), float("inf")),
    str: (3, 10**5000),
    dict: (3, "abc", 10**5000),
}
ARRAYS = (
    numpy.array(3),
    numpy.array([0.5, 1.5]),
    torch.tensor(3),
    torch.tensor([0.5, 1.5]),
)  # none is a list of integers
NUMBERS = [
    pytest.param(options, each, id=f"{options.__name__}.{each.name}")
    for options in CONFIGS
    for each in options_of(options)
    if each.bounds
]


@pytest.mark.parametrize("options", CONFIGS)
def test_a_value_of_another_type_is_refused_by_name(options):
    for each in options_of(options):
        items = ("no choice",) if each.choices else WRONG[each.kind]
        wrong = [*([item] for item in items), "abc", 3, {"a": 1}] if each.several else items
        for value in (*wrong, *ARRAYS):
            with pytest.raises(UnlearnError, match=f"^{each.name}="):
                options(**{each.name: value})


@pytest.mark.parametrize(("options", "each"), NUMBERS)
def test_a_number_out_of_range_is_refused_by_name(options, each):
    step = 1 if each.kind is int else 1e-6
    wrong = [end - step for name, end in each.bounds.items() if name == "low"]
    wrong += [end + step for name, end in each.bounds.items() if name == "high"]
    wrong += [end for name, end in each.bounds.items() if name in ("above", "below")]
    assert len(wrong) == len(each.bounds)
    for value in wrong:
        with pytest.raises(UnlearnError, match=f"^{each.name}="):
            options(**{each.name: [value] if each.several else value})


def test_every_number_of_rows_tokens_or_features_has_a_least_value():
    for options in CONFIGS:
        for each in options_of(options):
            assert each.kind is not int or each.name == "seed" or "low" in each.bounds, each.name


def test_choices_are_those_of_the_guardrail():
    known = {each.name: each.choices for each in options_of(GuardrailFitConfig)}
    for name, allowed in CHOICES.items():
        assert name not in known or set(known[name]) == set(allowed), name
    assert set(known["importance"]) == {"mean_squared", "squared_mean"}
    assert set(known["preset"]) == {*PRESETS} - {None}


def test_defaults_are_those_of_the_guardrail_where_it_has_them():
    own = {each.name: each.default for each in fields(SAEGuardrailConfig)}
    for name in ("gate_scope", "sticky", "action"):
        assert own[name] == getattr(GuardrailFitConfig(), name), name


def test_help_shows_what_a_preset_sets():
    shown = {each.name: each.shown for each in options_of(GuardrailFitConfig)}
    for name, value in PRESETS[None].items():
        assert shown[name] == "; faithful: ".join(
            f"{v:g}" if isinstance(v, float) else str(v) for v in (value, PRESETS["faithful"][name])
        )
    assert set(FIXED) <= set(PRESETS)


def test_an_alignment_and_its_command_have_the_same_options_once(tmp_path):
    settings = {each.name: each for each in fields(SAEAlignmentConfig)}
    for each in options_of(AlignmentOptions):
        assert settings[each.name].metadata == {"help": f"{each.sentence[0].upper()}{each.sentence[1:]}."}, each.name
        assert f"    {each.name} (" in SAEAlignmentConfig.__doc__
    of_command = {each.name: each for each in options_of(TrainOptions)}
    for each in options_of(AlignmentOptions):
        assert of_command[each.name] == each
    given = ["--output_dir", str(tmp_path), "--solve_layers", "1", "2", "--toward", "mmd"]
    [parsed] = HfArgumentParser(SAEAlignmentConfig).parse_args_into_dataclasses(given)
    assert (parsed.solve_layers, parsed.toward, parsed.away) == ([1, 2], "mmd", "hinge")


@pytest.mark.parametrize("options", [*CONFIGS, TrainOptions])
def test_the_docstring_has_every_option_with_type_and_default(options):
    flat = " ".join(options.__doc__.split())
    for each in options_of(options):
        assert f"{each.name} (" in flat
        assert f"{' '.join(each.help.split())[1:]}." in flat


def test_choices_of_an_alignment_are_those_of_its_loss():
    known = {each.name: each.choices for each in options_of(AlignmentOptions)}
    for name, allowed in (("toward", TOWARD), ("away", AWAY), ("preset", ALIGNMENT_PRESETS)):
        assert set(known[name]) == set(allowed), name


def test_the_settings_of_an_alignment_have_the_defaults_of_the_command():
    settings = {each.name: each.default for each in fields(SAEAlignmentConfig)}
    assert settings["per_device_train_batch_size"] == TrainOptions.batch_size
    apart = {"batch_size", "lora_rank", "resume", "min_known", "eval_steps", "save_steps"}
    for each in options_of(TrainOptions):
        assert each.name in apart or settings[each.name] == each.default, each.name
    assert inspect.signature(label_entities).parameters["min_known"].default == TrainOptions.min_known
