"""A guardrail from the Hub's cache: one commit, and the one that was asked for."""

import shutil

import pytest
import torch
from attached import COMMIT, OTHER, assert_untouched, logits, tensors_edit
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail


@pytest.fixture
def hub(folder, tmp_path):
    """huggingface_hub's cache with `me/guard` at two commits; `main` is the second, whose dose is nothing."""
    cache = tmp_path / "hub"
    repo = cache / "models--me--guard"
    for commit in (COMMIT, OTHER):
        shutil.copytree(folder, repo / "snapshots" / commit)
    fill_all = tensors_edit(lambda tensors, found: tensors[found["decoder.clamp"]].fill_(-0.5))
    fill_all(repo / "snapshots" / OTHER)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(OTHER)
    (repo / "refs" / "v1").write_text(COMMIT)
    return cache


def test_from_the_hub_at_a_pinned_revision(hub, fitted):
    for revision in (COMMIT, "v1"):
        model = attach_guardrail(base_model("llama"), "me/guard", revision=revision, cache_dir=hub)
        assert torch.equal(logits(model), fitted[1])
    newest = attach_guardrail(base_model("llama"), "me/guard", cache_dir=hub)
    assert not torch.equal(logits(newest), fitted[1])


def test_both_files_are_of_one_commit(hub, fitted, monkeypatch):
    """A branch that moves between the two reads does not mix a config with another commit's weights."""
    from sae_unlearn.files import hub as source

    original = source.hf_hub_download
    (hub / "models--me--guard" / "refs" / "main").write_text(COMMIT)

    def moving(repo, name, **kwargs):
        path = original(repo, name, **kwargs)
        (hub / "models--me--guard" / "refs" / "main").write_text(OTHER)
        return path

    monkeypatch.setattr(source, "hf_hub_download", moving)
    model = attach_guardrail(base_model("llama"), "me/guard", cache_dir=hub)
    assert torch.equal(logits(model), fitted[1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("me/nothing", "not cached"),
        ("no/such/folder", "no/such/folder"),
        ("", "."),
    ],
)
def test_what_is_not_there_is_said_so(source, message, tmp_path):
    model = base_model("llama")
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, source, cache_dir=tmp_path)
    assert_untouched(model)


def test_a_revision_that_is_not_there_is_refused(hub):
    with pytest.raises(GuardrailError, match="not cached"):
        attach_guardrail(base_model("llama"), "me/guard", revision="c" * 40, cache_dir=hub)
