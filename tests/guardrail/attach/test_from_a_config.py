"""A guardrail from a config and an SAE: what is missing is refused by name."""

import json
import os

import pytest
import torch
from attached import COMMIT, assert_untouched, by_hand, logits, tiny_sae
from safetensors import safe_open
from zoo import base_model, planted_config

from sae_unlearn import (
    GuardrailError,
    SparseAutoencoder,
    attach_guardrail,
    guardrail_status,
    set_action,
)
from sae_unlearn.errors import UnlearnError


def test_from_a_config_and_an_sae_in_memory(fitted):
    model = attach_guardrail(base_model("llama"), by_hand(), sae=tiny_sae())
    assert torch.equal(logits(model), fitted[1])


def test_from_a_config_that_names_its_sae_on_the_hub(fitted, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    repo = cache / "models--me--sae"
    tiny_sae().save_pretrained(repo / "snapshots" / COMMIT / "layer_1")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    source = {"id": "me/sae", "revision": COMMIT, "subfolder": "layer_1"}
    original = SparseAutoencoder.from_pretrained
    monkeypatch.setattr(
        SparseAutoencoder, "from_pretrained", lambda *args, **kwargs: original(*args, **kwargs, cache_dir=cache)
    )
    model = attach_guardrail(base_model("llama"), by_hand(sae_source=source))
    assert torch.equal(logits(model), fitted[1])


@pytest.mark.parametrize(
    ("config", "sae", "message"),
    [
        (lambda: by_hand(threshold=None), tiny_sae, "threshold"),
        (lambda: by_hand(clamp_value=None), tiny_sae, "clamp_value"),
        (lambda: planted_config(feature_ids=None, clamp_value=-5.0), tiny_sae, "feature_ids"),
        (by_hand, lambda: None, "Pass `sae=`"),
        (lambda: by_hand(sae_source={"id": "my-sae", "local": True}), lambda: None, "Pass `sae=`"),
        (by_hand, lambda: tiny_sae(layer=2), "layer=1: expected 2"),
        (by_hand, lambda: tiny_sae(width=40), "hidden size 40"),
        (lambda: by_hand(layer=9), lambda: tiny_sae(layer=9), "layer=9"),
    ],
    ids=["threshold", "clamp", "features", "no sae", "local sae", "layer", "width", "too deep"],
)
def test_a_config_that_lacks_something_is_refused(config, sae, message):
    model = base_model("llama")
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, config(), sae=sae())
    assert_untouched(model)


def test_feature_ids_beyond_the_sae_are_refused():
    model = base_model("llama")
    with pytest.raises(UnlearnError, match="500"):
        attach_guardrail(model, by_hand(feature_ids=[500]), sae=tiny_sae())
    assert_untouched(model)


def test_the_config_that_was_given_can_be_given_again():
    config = by_hand()
    first = attach_guardrail(base_model("llama"), config, sae=tiny_sae())
    second = attach_guardrail(base_model("llama"), config, sae=tiny_sae())
    assert torch.equal(logits(first), logits(second))
    other = attach_guardrail(base_model("gpt2"), config, sae=tiny_sae())
    assert logits(other).isfinite().all()
    assert torch.equal(logits(first), logits(second))


def test_what_is_changed_on_one_model_is_not_changed_on_another_of_the_same_config():
    config = by_hand()
    first, second = (attach_guardrail(base_model("llama"), config, sae=tiny_sae()) for _ in range(2))
    set_action(first, "default", "record")
    assert guardrail_status(first).verdict == "unguarded"
    assert guardrail_status(second).verdict == "guarded"
    assert config.action == "clamp"


def test_the_folder_does_not_name_a_local_path(folder):
    home = os.fspath(folder.parent)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        metadata = json.dumps(file.metadata())
    for text in (metadata, (folder / "adapter_config.json").read_text(), (folder / "README.md").read_text()):
        assert home not in text
