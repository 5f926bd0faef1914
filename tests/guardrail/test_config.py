"""Every field of `SAEGuardrailConfig` is checked when it is set, and the error names field and value."""

import copy
import dataclasses
import json
import pickle

import pytest
from peft import PeftConfig

from sae_unlearn import GuardrailError, SAEGuardrailConfig
from sae_unlearn.guardrail.config_validation import CHOICES, check_config
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


NAN, INFINITY = float("nan"), float("inf")
INTEGERS = {"layer": 0, "num_features": 0, "window": 1, "min_tokens": 1, "hidden_size": 1, "num_layers": 1}

REFUSED = [
    *[({name: wrong}, rf"{name}.*{wrong!r}") for name in CHOICES for wrong in ("other", None, 3)],
    *[({name: low - 1}, rf"{name}: {low - 1} must be an integer >= {low}") for name, low in INTEGERS.items()],
    *[({name: wrong}, rf"{name}: {wrong!r} must be an integer") for name in INTEGERS for wrong in (1.5, "2", True)],
    *[({name: wrong}, rf"{name}={wrong!r} must be True or False")
      for name in ("sticky", "init_weights") for wrong in (1, "no")],
    ({"layer": 4, "num_layers": 4}, "layer=4 is not below num_layers=4"),
    ({"statistic": "window", "window": 4, "min_tokens": 5}, "window=4 is below min_tokens=5"),
    ({"threshold": -0.1}, "would always fire"),
    ({"threshold": 1.0}, "would never fire"),
    ({"threshold": 1.5, "statistic": "window"}, "would never fire"),
    ({"threshold": -1.0, "statistic": "cusum"}, "would always fire"),
    *[({name: wrong}, rf"{name}={wrong!r} must be a finite number")
      for name in ("threshold", "drift", "clamp_value", "clamp_scale")
      for wrong in (NAN, INFINITY, -INFINITY, "1", True)],
    ({"drift": 0.0}, "drift=0.0 must lie between"),
    ({"drift": 1.0}, "drift=1.0 must lie between"),
    ({"clamp_value": 500.0}, r"clamp_value=500.0 is positive.*-500.0"),
    ({"clamp_scale": -5.0}, r"clamp_scale=-5.0 is negative.*5.0"),
    ({"feature_ids": []}, "non-empty list"),
    ({"feature_ids": 7}, "feature_ids=7"),
    ({"feature_ids": "12"}, "feature_ids='12'"),
    ({"feature_ids": [1, -2]}, "feature_ids: -2"),
    ({"feature_ids": [1, 2.0]}, "feature_ids: 2.0"),
    ({"feature_ids": [1, True]}, "feature_ids: True"),
    ({"feature_ids": [3, 1, 3]}, r"\[3\] more than once"),
    ({"feature_ids": [3, 1], "num_features": 3}, "num_features=3 but feature_ids names 2"),
    ({"special_token_ids": 5}, "special_token_ids=5"),
    ({"special_token_ids": [-1]}, "special_token_ids: -1"),
    ({"special_token_ids": ["a"]}, "special_token_ids: 'a'"),
    ({"target_modules": ["model.layers.1", "model/../x"]}, "model/../x"),
    ({"target_modules": "a b"}, "a b"),
    ({"target_modules": [3]}, "3"),
    ({"sae_source": "google/x"}, "sae_source='google/x' must be a mapping"),
    ({"calibration": [1]}, r"calibration=\[1\] must be a mapping"),
    ({"base_fingerprint": 3}, "base_fingerprint=3 must be a mapping"),
    ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping"),
    ({"task_type": "SEQ_CLS"}, "CAUSAL_LM"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_wrong_value_is_refused_by_name(fields, message):
    with pytest.raises(GuardrailError, match=message):
        SAEGuardrailConfig(**fields)


ACCEPTED = [
    {"threshold": 0.0},
    {"threshold": 0.999},
    {"threshold": 40.0, "statistic": "cusum"},
    {"clamp_value": 0.0},
    {"clamp_value": -500},
    {"clamp_scale": 0},
    {"feature_ids": (3, 1, 2)},
    {"special_token_ids": {5, 1}},
    {"layer": 3, "num_layers": 4},
    {"window": 4, "min_tokens": 5, "statistic": "ratio"},
    *[{name: value} for name, values in CHOICES.items() for value in values if value != "refuse"],
    {"action": "refuse", "refusal": "No.", "refusal_ids": [7, 1]},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=map(str, ACCEPTED))
def test_right_value_is_accepted_and_survives_the_folder(fields, tmp_path):
    config = SAEGuardrailConfig(**fields)
    config.save_pretrained(tmp_path)
    json.loads((tmp_path / "adapter_config.json").read_text())
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, SAEGuardrailConfig)
    assert again.to_dict() == config.to_dict()


def test_feature_ids_give_the_number_of_features():
    assert SAEGuardrailConfig(feature_ids=[4, 2, 9]).num_features == 3
    assert SAEGuardrailConfig(feature_ids=[4, 2, 9]).feature_ids == (4, 2, 9)


def test_special_token_ids_are_sorted_and_unique():
    assert SAEGuardrailConfig(special_token_ids=[5, 1, 5]).special_token_ids == (1, 5)


LISTS = {
    "feature_ids": [4, 2],
    "feature_evidence": [0.5, 1.0],
    "special_token_ids": [1, 5],
    "message_boundary_ids": [5],
    "refusal_ids": [7, 8],
}


def with_lists():
    return SAEGuardrailConfig(evidence="log_ratio", target_modules=["layers.0"], **LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_held_as_a_tuple_and_saved_as_a_list(name, tmp_path):
    config = with_lists()
    assert getattr(config, name) == tuple(LISTS[name])
    setattr(config, name, LISTS[name][:])
    assert getattr(config, name) == tuple(LISTS[name])
    assert config.to_dict()[name] == LISTS[name]
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())[name] == LISTS[name]


def test_every_list_of_a_config_is_among_them():
    held = [field.name for field in dataclasses.fields(SAEGuardrailConfig) if "Sequence" in str(field.type)]
    assert held == [name for name in with_lists().to_dict() if name in LISTS]
    assert not [value for value in vars(with_lists()).values() if isinstance(value, list)]


@pytest.mark.parametrize("field", dataclasses.fields(SAEGuardrailConfig), ids=lambda field: field.name)
def test_every_assignment_changes_the_version(field):
    config = with_lists()
    seen = {config.version}
    setattr(config, field.name, getattr(config, field.name))
    seen.add(config.version)
    delattr(config, field.name)
    assert len(seen | {config.version}) == 3


def test_no_two_configs_have_one_version():
    config = with_lists()
    copies = [copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), with_lists()]
    assert len({config.version, *(one.version for one in copies)}) == 5
    assert all(one == config and one.to_dict() == config.to_dict() for one in copies)
    assert "version" not in dataclasses.asdict(config)


def test_to_check_a_sound_config_is_no_change():
    config = with_lists()
    version = config.version
    check_config(config)
    assert config.version == version
    config.special_token_ids = [5, 1]
    check_config(config)
    assert config.special_token_ids == (1, 5)


def test_every_field_says_what_it_is():
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    for field in dataclasses.fields(SAEGuardrailConfig):
        if field.name not in inherited:
            assert field.metadata.get("help"), field.name


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_stored_config_of_another_format_version_is_refused(version, tmp_path):
    SAEGuardrailConfig(threshold=0.5).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))
    with pytest.raises(GuardrailError, match="format_version"):
        PeftConfig.from_pretrained(tmp_path)


def test_stored_config_with_an_unknown_key_is_refused(tmp_path):
    SAEGuardrailConfig(threshold=0.5).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trust": "me"}))
    with pytest.raises(GuardrailError, match=r"\['trust'\]"):
        GuardrailFolder.open(tmp_path).config()
