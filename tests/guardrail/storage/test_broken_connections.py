"""Uploads and downloads of a guardrail that break leave nothing half there and can be repeated; and without the Hub."""

import shutil

import pytest
import torch
from hub_guardrails import REPO, attach, guarded, logits, origin
from hub_requests import OWNER
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail


@pytest.mark.parametrize("where", ["POST .*/preupload/", "POST .*objects/batch", "PUT /storage/", "POST .*/commit/"])
def test_an_interrupted_upload_leaves_nothing_and_can_be_repeated(stand_in, where):
    model = guarded()
    stand_in.break_at = where
    with pytest.raises(GuardrailError, match=r"upload .*me/forget "):
        model.push_to_hub(REPO, token=OWNER)
    assert stand_in.repositories[REPO].at("main").files == {}
    with pytest.raises(GuardrailError, match=r"me/forget .*adapter_config\.json"):
        attach()
    stand_in.break_at = None
    commit = model.push_to_hub(REPO, token=OWNER)
    found = attach()
    assert origin(found)["revision"] == commit.oid
    assert torch.equal(logits(found), logits(model))


def test_an_interrupted_upload_leaves_the_guardrail_that_was_there(stand_in):
    first = guarded()
    old = first.push_to_hub(REPO, token=OWNER).oid
    stand_in.break_at = "POST .*/commit/"
    with pytest.raises(GuardrailError, match=r"upload .*me/forget .*RemoteProtocolError"):
        guarded(seed=1).push_to_hub(REPO, token=OWNER)
    found = attach()
    assert origin(found)["revision"] == old
    assert torch.equal(logits(found), logits(first))


def test_a_repeated_upload_does_not_send_again_what_arrived(stand_in):
    stand_in.break_at = "POST .*/commit/"
    with pytest.raises(GuardrailError):
        guarded().push_to_hub(REPO, token=OWNER)
    stand_in.break_at = None
    stand_in.requests.clear()
    guarded().push_to_hub(REPO, token=OWNER)
    assert not [path for method, path in stand_in.requests if method == "PUT"]


def test_an_interrupted_download_attaches_nothing_and_can_be_repeated(stand_in):
    model = guarded()
    model.push_to_hub(REPO, token=OWNER)
    stand_in.break_at = "GET /storage/"
    base = base_model("llama")
    plain = logits(base)
    with pytest.raises(GuardrailError, match=r"adapter_model\.safetensors from me/forget"):
        attach_guardrail(base, REPO)
    assert torch.equal(logits(base), plain)
    assert not hasattr(base, "peft_config")
    stand_in.break_at = None
    assert torch.equal(logits(attach_guardrail(base, REPO)), logits(model))


def test_what_was_attached_once_is_there_without_the_hub(stand_in):
    model = guarded()
    commit = model.push_to_hub(REPO, token=OWNER).oid
    attach()
    stand_in.stop()
    for kwargs in ({}, {"revision": commit}, {"local_files_only": True}):
        found = attach(**kwargs)
        assert torch.equal(logits(found), logits(model))
        assert origin(found)["revision"] == commit


def test_a_hub_that_hangs_up_is_as_good_as_none(stand_in, caplog):
    commit = guarded().push_to_hub(REPO, token=OWNER).oid
    attach()
    stand_in.break_at = "."
    assert origin(attach())["revision"] == commit
    assert "using the cached copy" in caplog.text


def test_what_was_never_attached_is_not_there_without_the_hub(stand_in, tmp_path):
    guarded().push_to_hub(REPO, token=OWNER)
    with pytest.raises(GuardrailError, match="not cached"):
        attach(local_files_only=True)
    stand_in.stop()
    with pytest.raises(GuardrailError, match="not cached"):
        attach(cache_dir=tmp_path / "other")


def test_a_cache_below_a_folder_named_snapshots_does_not_mislead(stand_in, tmp_path):
    commit = guarded().push_to_hub(REPO, token=OWNER).oid
    assert origin(attach(cache_dir=tmp_path / "snapshots" / "hub"))["revision"] == commit
    shutil.rmtree(tmp_path / "snapshots")
