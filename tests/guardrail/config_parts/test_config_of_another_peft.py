"""Unknown keys of a stored config: PEFT's are ignored with a warning, ours are refused."""

import json

import peft
import pytest
from edited_json import edited_json
from peft import PeftConfig, PeftModel
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import GuardrailError, SAEGuardrailConfig, __version__, attach_guardrail
from sae_unlearn.cli.show import describe
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


NEWER = "999.1.0"
IDS = token_ids(4, 10)


def folder_with(tmp_path, **fields):
    guarded("llama").save_pretrained(tmp_path)
    edited_json("adapter_config.json", **fields)(tmp_path)
    return tmp_path


@pytest.mark.parametrize("version", [NEWER, "0.1.0", f"{NEWER}.dev0@abc", f"{peft.__version__}@abc"])
def test_a_field_of_another_peft_is_ignored_with_a_warning(version, tmp_path):
    folder = folder_with(tmp_path, peft_version=version, new_in_peft={"a": 1})
    with pytest.warns(UserWarning, match="'new_in_peft'"):
        model = attach_guardrail(base_model("llama"), folder)
    assert (logits_of(model.eval(), IDS) == logits_of(guarded("llama").eval(), IDS)).all()
    with pytest.warns(UserWarning, match="'new_in_peft'"):
        PeftModel.from_pretrained(base_model("llama"), folder)
    with pytest.warns(UserWarning, match="'new_in_peft'"):
        assert type(PeftConfig.from_pretrained(folder)) is SAEGuardrailConfig
    with pytest.warns(UserWarning, match="'new_in_peft'"):
        assert "layer" in describe(GuardrailFolder.open(folder))


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_version": peft.__version__},
        {"peft_version": None},
        {"peft_version": "no version"},
        {"peft_version": 3},
        {"peft_version": NEWER, "sae_unlearn_version": NEWER},
    ],
)
def test_an_unknown_key_that_can_be_ours_is_refused(fields, tmp_path):
    folder = folder_with(tmp_path, new_of_ours=1, **fields)
    with pytest.raises(GuardrailError, match=r"new_of_ours.*newer sae_unlearn"):
        attach_guardrail(base_model("llama"), folder)
    with pytest.raises(GuardrailError, match="new_of_ours"):
        PeftModel.from_pretrained(base_model("llama"), folder)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("treshold", "threshold"),
        ("threshold_extra", "threshold"),
        ("Acton", "action"),
        ("refusal_id", "refusal"),
        ("featureids", "feature_ids"),
        ("min_tokens", "min_tokens"),  # of a group
        ("clamp", ""),
        ("sae_path", ""),
    ],
)
def test_a_key_that_looks_like_ours_is_refused_whatever_peft_wrote_it(key, meant, tmp_path):
    path = folder_with(tmp_path, peft_version=NEWER) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 1}))
    with pytest.raises(GuardrailError, match=f"Unknown key {key}.*{meant}"):
        attach_guardrail(base_model("llama"), tmp_path)
    with pytest.raises(GuardrailError, match=f"Unknown key {key}"):
        PeftModel.from_pretrained(base_model("llama"), tmp_path)


@pytest.mark.parametrize("key", ["base_model_revision", "layers_pattern", "arrow_config", "peft_types"])
def test_a_key_that_peft_may_have_is_not_ours(key, tmp_path):
    folder = folder_with(tmp_path, peft_version=NEWER, **{key: 1})
    with pytest.warns(UserWarning, match=key):
        attach_guardrail(base_model("llama"), folder)


def test_a_file_says_which_versions_wrote_it(tmp_path):
    guarded("llama").save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["sae_unlearn_version"], stored["peft_version"]) == (__version__, peft.__version__)
