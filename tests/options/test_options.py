"""Options stand once: signatures, defaults, choices and presets come from the same dataclasses."""

import inspect
from dataclasses import fields

import pytest

from sae_unlearn import GuardrailFitConfig, SAEAlignmentConfig, fit_guardrail, fit_guardrails, label_entities
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import audit, evaluate, picture_guardrail
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.options.evaluation import AuditConfig, EvaluationConfig, PictureConfig
from sae_unlearn.options.field import options_of
from sae_unlearn.options.fit import FIXED, PRESETS
from sae_unlearn.options.train import TrainOptions


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


def test_the_settings_of_an_alignment_have_the_defaults_of_the_command():
    settings = {each.name: each.default for each in fields(SAEAlignmentConfig)}
    assert settings["per_device_train_batch_size"] == TrainOptions.batch_size
    apart = {"batch_size", "lora_rank", "resume", "min_known", "eval_steps", "save_steps"}
    for each in options_of(TrainOptions):
        assert each.name in apart or settings[each.name] == each.default, each.name
    assert inspect.signature(label_entities).parameters["min_known"].default == TrainOptions.min_known
