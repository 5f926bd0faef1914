"""Thousands of damaged and strange inputs: each gives a typed error or the result of the sound one, and none hangs,
crashes, or leaves a model unguarded. What is drawn is drawn from fixed seeds, so that every run is the same.

`CASES` is per kind; `SAE_UNLEARN_FUZZ=20` makes twenty times as many. Files of SAEs are in `test_fuzz_sae_files`."""

import copy
import json
import random
import shutil
import struct
from functools import cache

import pytest
import torch
from config_fields import PLACES
from config_fields import with_fields as edited
from damage import CASES, DAMAGE, cut, in_time
from fuzzing import JSON, QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import base_model, random_sae

from sae_unlearn import GuardrailError, SAEGuardrailConfig, attach_guardrail, fit_guardrail, record_firings
from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, WEIGHTS_NAME
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


SOME = settings(QUICK, max_examples=CASES // 8)


@cache
def bare():
    return base_model("llama")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "guard"
    model = fit_guardrail(
        base_model("llama"), None, random_sae(40), features=[3, 8, 21], threshold=0.15, clamp_value=-6.0
    )
    model.save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------------------------------------------- damage


def same(first, second):
    assert first.config.to_dict() == second.config.to_dict()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_guardrail_is_refused_or_the_very_same(damage, name, sound, tmp_path):
    shutil.copytree(sound, tmp_path / "guard")
    path, whole, draw = tmp_path / "guard" / name, (sound / name).read_bytes(), random.Random(damage.__name__ + name)
    original = GuardrailFolder.open(sound).artefact()
    outcomes = {"refused": 0, "sealed": 0, "same": 0}
    for case in range(CASES):
        path.write_bytes(damage(whole, draw))
        try:
            with in_time(case):
                found = GuardrailFolder.open(tmp_path / "guard").artefact()
        except GuardrailError:
            outcomes["refused"] += 1
            continue
        if found.damage is None:
            same(found, original)
            outcomes["same"] += 1
        else:
            outcomes["sealed"] += 1
    assert sum(outcomes.values()) == CASES
    assert outcomes["refused"] > 0


def test_a_damaged_guardrail_on_a_model_guards_as_the_sound_one_or_is_not_there(sound, tmp_path):
    """The same all the way: attached, and run."""
    shutil.copytree(sound, tmp_path / "guard")
    ids = torch.randint(2, 90, (4, 8), generator=torch.Generator().manual_seed(0))
    model, draw = base_model("llama"), random.Random(0)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        expected = attach_guardrail(base_model("llama"), sound)(input_ids=ids).logits
    for i in range(CASES // 8):
        name = (CONFIG_NAME, WEIGHTS_NAME)[i % 2]
        damage = draw.choice(list(DAMAGE.values()))
        for each in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copy(sound / each, tmp_path / "guard" / each)
        (tmp_path / "guard" / name).write_bytes(damage((sound / name).read_bytes(), draw))
        try:
            with in_time(i):
                attached = attach_guardrail(base_model("llama"), tmp_path / "guard")
        except GuardrailError:
            continue
        with torch.no_grad():
            assert torch.equal(attached(input_ids=ids).logits, expected)
    for _ in range(3):  # the model that a refused guardrail was offered to
        (tmp_path / "guard" / WEIGHTS_NAME).write_bytes(cut((sound / WEIGHTS_NAME).read_bytes(), draw))
        with pytest.raises(GuardrailError):
            attach_guardrail(model, tmp_path / "guard")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_a_header_of_any_length_is_refused_at_once(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "guard")
    path = tmp_path / "guard" / WEIGHTS_NAME
    whole = path.read_bytes()
    for power in range(64):
        path.write_bytes(struct.pack("<Q", 2**power - 1) + whole[8:])
        with pytest.raises(GuardrailError), in_time(power):
            GuardrailFolder.open(tmp_path / "guard").artefact()


NEAR = st.one_of(
    JSON,
    st.integers(-2, 40),
    st.floats(-2, 2),
    st.sampled_from([10**30, -(10**30), 1e308, 5e-324, 2**24, 2**24 + 1, 2**31, "1", "nan", [], {}, [1, 2], [3, 3]]),
    st.sampled_from([value for values in CHOICES.values() for value in values]),
)
FIELDS = sorted([*SAEGuardrailConfig.__dataclass_fields__, *PLACES])


def with_fields(sound, folder, fields):
    """The sound guardrail with other fields in its config, and no seal."""
    folder.mkdir(exist_ok=True)
    stored = json.loads((sound / CONFIG_NAME).read_text())
    unsealed = {key: value for key, value in stored.items() if not key.endswith("_sha256")}
    (folder / CONFIG_NAME).write_text(json.dumps(edited(unsealed, **fields)))
    shutil.copy(sound / WEIGHTS_NAME, folder / WEIGHTS_NAME)


@pytest.mark.slow
@QUICK
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), NEAR, min_size=1, max_size=4))
@in_time()
def test_a_stored_config_is_refused_or_means_what_it_says(sound, tmp_path_factory, fields):
    folder = tmp_path_factory.getbasetemp() / "configs"
    with_fields(sound, folder, fields)
    try:
        artefact = GuardrailFolder.open(folder).artefact()
    except GuardrailError:
        return
    low, high = artefact.config.threshold_bounds
    assert low <= artefact.config.threshold < high
    assert artefact.config.clamp_value is None or artefact.config.clamp_value <= 0
    assert artefact.tensors["encoder.weight"].shape == (artefact.config.num_features, artefact.config.width)
    again = SAEGuardrailConfig(**{k: v for k, v in artefact.config.to_dict().items() if k != "peft_type"})
    assert again.to_dict() == artefact.config.to_dict()


MEANT = {
    "threshold": st.floats(0, 1),
    "statistic": st.sampled_from(CHOICES["statistic"]),
    "gate_scope": st.sampled_from(CHOICES["gate_scope"]),
    "clamp_mode": st.sampled_from(CHOICES["clamp_mode"]),
    "clamp_value": st.floats(-20, -1),
    "min_tokens": st.integers(0, 14),
    "sticky": st.booleans(),
    "outlier_norm": st.floats(5, 20),
    "drift": st.floats(0, 1),
    "sum_weight": st.floats(0, 2),
}


@pytest.mark.slow
@SOME
@given(st.fixed_dictionaries({}, optional=MEANT), st.dictionaries(st.sampled_from(FIELDS), NEAR, max_size=1))
@in_time()
def test_a_config_that_is_accepted_edits_the_rows_that_fire_and_no_others(sound, tmp_path_factory, meant, odd):
    folder = tmp_path_factory.getbasetemp() / "attached"
    with_fields(sound, folder, meant | odd)
    base = bare()
    try:
        model = attach_guardrail(copy.deepcopy(base), folder)
    except GuardrailError:
        return
    config = model.peft_config["default"]
    ids = torch.randint(2, 90, (6, 12), generator=torch.Generator().manual_seed(1))
    with record_firings(model) as firings, torch.no_grad():
        found, plain = model(input_ids=ids).logits, base(input_ids=ids).logits
    assert [firing.row for firing in firings] == list(range(6))
    for firing, changed in zip(firings, (found != plain).flatten(1).any(dim=1).tolist(), strict=True):
        edited = firing.fired and firing.evidence > 0 and config.action == "clamp"
        if config.gate_scope == "sequence":
            assert changed == edited
        else:  # the hot tokens may have come before it fired
            assert changed <= edited
