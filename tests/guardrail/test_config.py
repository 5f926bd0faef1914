"""Every field of `SAEGuardrailConfig` is checked when it is set, and the error names field and value."""

import copy
import dataclasses
import json
import pickle

import pytest
from config_fields import GROUPS, grouped
from peft import PeftConfig

from sae_unlearn import GuardrailError, SAEGuardrailConfig
from sae_unlearn.guardrail import StatisticKwargs, TokenRules
from sae_unlearn.guardrail.config_parts.validation import CHOICES, check_config
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


NAN, INFINITY = float("nan"), float("inf")
INTEGERS = {"layer": 0, "min_tokens": 1, "hidden_size": 1, "num_layers": 1}

WINDOWED = {"statistic": "windowed", "feature_ids": [2], "gate_feature_ids": [5], "feature_evidence": [1.0, -2.0]}

REFUSED = [
    *[({name: wrong}, rf"{name}.*{wrong!r}") for name in (*CHOICES, "counting") for wrong in ("other", None, 3)],
    *[({name: low - 1}, rf"{name}={low - 1}: ") for name, low in INTEGERS.items()],
    *[({name: wrong}, rf"{name}={wrong!r}: ") for name in INTEGERS for wrong in (1.5, "2", True)],
    *[({name: wrong}, rf"{name}={wrong!r}: ")
      for name in ("sticky", "init_weights") for wrong in (1, "no")],
    ({"layer": 4, "num_layers": 4}, "layer=4: "),
    *[({"statistic": gone}, f"statistic='{gone}'") for gone in ("window", "ratio_or_window", "cusum")],
    ({"threshold": -0.1}, r"threshold=-0\.1 .*always"),
    ({"threshold": 1.0}, r"threshold=1\.0 .*never"),
    *[({name: wrong}, rf"{name}={wrong!r}: ")
      for name in ("threshold", "drift", "clamp_value")
      for wrong in (NAN, INFINITY, -INFINITY, "1", True)],
    ({"clamp_value": 500.0}, "clamp_value=500.0"),
    ({"feature_ids": []}, "feature_ids="),
    ({"feature_ids": 7}, "feature_ids=7"),
    ({"feature_ids": "12"}, "feature_ids='12'"),
    ({"feature_ids": [1, -2]}, "feature_ids=-2"),
    ({"feature_ids": [1, 2.0]}, "feature_ids=2.0"),
    ({"feature_ids": [1, True]}, "feature_ids=True"),
    ({"feature_ids": [3, 1, 3]}, r"feature_ids=\[3\]"),
    ({"gate_feature_ids": [3]}, "gate_feature_ids goes with statistic='windowed'"),
    ({"gate_levels": 3}, "gate_levels goes with statistic='windowed'"),
    ({**WINDOWED, "gate_levels": 3, "feature_evidence": [0.25] * 5}, "gate_levels=3"),
    ({"gate_levels": -1}, "gate_levels=-1"),
    ({**WINDOWED, "gate_feature_ids": [2]}, r"feature_ids=\[2\]"),
    ({**WINDOWED, "sticky": False}, "sticky=False"),
    ({**WINDOWED, "counting": "columns"}, "counting='columns'"),
    ({**WINDOWED, "feature_evidence": [1.0]}, "feature_evidence: expected 2 numbers"),
    ({**WINDOWED, "feature_evidence": [1.0, -16.25]}, "from -16 to 16"),
    ({**WINDOWED, "drift": 0.1}, "drift=0.1: .*0.0625"),
    ({**WINDOWED, "bias": 0.1}, "bias=0.1: .*0.25"),
    ({**WINDOWED, "threshold": -0.5}, r"threshold=-0\.5 .*always"),
    *[({**WINDOWED, name: -1.0}, f"{name}=-1.0")
      for name in ("row_variance", "token_variance", "sum_weight")],
    ({"special_ids": 5}, "tokens.special_ids=5"),
    ({"special_ids": [-1]}, "tokens.special_ids=-1"),
    ({"special_ids": ["a"]}, "tokens.special_ids='a'"),
    ({"tokens": {"specials": [3]}}, r"tokens=\['specials'\]: .*counting"),
    *[({name: wrong}, f"{name}=.*: expected a mapping") for name in GROUPS for wrong in (3, None, [1])],
    ({"sae_source": "google/x"}, "sae_source='google/x': "),
    ({"calibration": [1]}, r"calibration=\[1\]: "),
    ({"fingerprint": 3}, "base_model.fingerprint=3: "),
    ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping"),
    ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_wrong_value_is_refused_by_name(fields, message):
    with pytest.raises(GuardrailError, match=message):
        SAEGuardrailConfig(**grouped(**fields))


ACCEPTED = [
    WINDOWED,
    WINDOWED | {"threshold": 40.0, "boundary_ids": [7], "drift": -0.0625},
    {"threshold": 0.0},
    {"threshold": 0.999},
    {"clamp_value": 0.0},
    {"clamp_value": -500},
    {"feature_ids": (3, 1, 2)},
    {"special_ids": {5, 1}},
    {"layer": 3, "num_layers": 4},
    *[{name: value} for name, values in CHOICES.items() for value in values if value != "refuse"],
    {"counting": "columns"},
    {"action": "refuse", "refusal": "No.", "refusal_ids": [7, 1]},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=map(str, ACCEPTED))
def test_right_value_is_accepted_and_survives_the_folder(fields, tmp_path):
    config = SAEGuardrailConfig(**grouped(**fields))
    config.save_pretrained(tmp_path)
    json.loads((tmp_path / "adapter_config.json").read_text())
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, SAEGuardrailConfig)
    assert again.to_dict() == config.to_dict()


def test_feature_ids_give_the_number_of_features():
    assert SAEGuardrailConfig(feature_ids=[4, 2, 9]).num_features == 3
    assert SAEGuardrailConfig(feature_ids=[4, 2, 9]).feature_ids == (4, 2, 9)


def test_special_ids_are_sorted_and_unique():
    assert TokenRules(special_ids=[5, 1, 5]).special_ids == (1, 5)
    assert SAEGuardrailConfig(tokens={"special_ids": [5, 1, 5]}).tokens == TokenRules(special_ids=(1, 5))


def test_a_mapping_becomes_a_group_that_cannot_change():
    config = SAEGuardrailConfig(tokens={"boundary_ids": [5]}, statistic_kwargs={"min_tokens": 4})
    assert config.statistic_kwargs == StatisticKwargs(min_tokens=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.statistic_kwargs.min_tokens = 5
    with pytest.raises(TypeError):
        config.tokens.boundary_ids[0] = 6


LISTS = {
    "feature_ids": [4, 2],
    "gate_feature_ids": [9],
    "feature_evidence": [0.5, 1.0, -0.25],
    "refusal_ids": [7, 8],
}


def with_lists():
    return SAEGuardrailConfig(tokens={"special_ids": [1, 5]}, statistic="windowed", **LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_held_as_a_tuple_and_saved_as_a_list(name, tmp_path):
    config = with_lists()
    assert getattr(config, name) == tuple(LISTS[name])
    setattr(config, name, LISTS[name][:])
    assert getattr(config, name) == tuple(LISTS[name])
    assert config.to_dict()[name] == LISTS[name]
    assert config.to_dict()["tokens"]["special_ids"] == [1, 5]
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
    config.tokens = {"special_ids": [5, 1]}
    version = config.version
    check_config(config)
    assert (config.version, config.tokens.special_ids) == (version, (1, 5))


def test_every_field_says_what_it_is():
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    for field in dataclasses.fields(SAEGuardrailConfig):
        if field.name not in inherited:
            assert field.metadata.get("help"), field.name
    for kind in GROUPS.values():
        assert all(field.metadata.get("help") for field in dataclasses.fields(kind)), kind


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", None, True, 3.0])
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
