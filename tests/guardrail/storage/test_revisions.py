"""Pull requests, branches, tags and commits of a guardrail on the Hub."""

import pytest
import torch
from hub_guardrails import REPO, attach, guarded, logits, origin
from hub_requests import OWNER
from huggingface_hub import HfApi
from zoo import base_model

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, push_bundle


def as_one(model, **kwargs):
    return model.push_to_hub(REPO, token=OWNER, **kwargs)


def as_bundle(model, **kwargs):
    return push_bundle(model, REPO, token=OWNER, **kwargs)


@pytest.mark.parametrize(("push", "put_on"), [(as_one, attach_guardrail), (as_bundle, attach_bundle)])
def test_a_pull_request_leaves_main_as_it_is_and_can_be_tried(stand_in, push, put_on):
    first, second = guarded(), guarded(seed=1)
    old = push(first).oid
    found = push(second, create_pr=True, commit_message="Another seed", commit_description="Why, at length.")
    assert found.pr_url.endswith("/me/forget/discussions/1")
    assert stand_in.repositories[REPO].at("main").oid == old
    offered = stand_in.repositories[REPO].at("refs/pr/1")
    assert (offered.oid, offered.message, offered.description) == (found.oid, "Another seed", "Why, at length.")
    assert torch.equal(logits(put_on(base_model("llama"), REPO)), logits(first))
    assert torch.equal(logits(put_on(base_model("llama"), REPO, revision="refs/pr/1")), logits(second))


@pytest.mark.parametrize("push", [as_one, as_bundle])
def test_a_pull_request_to_another_branch_is_refused(stand_in, push):
    with pytest.raises(GuardrailError, match=r"revision='trial'.*create_pr=True"):
        push(guarded(), create_pr=True, revision="trial")
    assert stand_in.repositories == {}


# ------------------------------------------------------------------------------------------------------------ revisions


def test_a_pinned_commit_is_honoured_after_a_newer_push(stand_in):
    first, second = guarded(), guarded(seed=1)
    old = first.push_to_hub(REPO, token=OWNER).oid
    new = second.push_to_hub(REPO, token=OWNER, commit_message="again").oid
    assert old != new
    assert torch.equal(logits(attach(revision=old)), logits(first))
    assert origin(attach(revision=old))["revision"] == old
    assert torch.equal(logits(attach()), logits(second))
    assert origin(attach())["revision"] == new


def test_branches_and_tags_are_revisions(stand_in):
    first, second = guarded(), guarded(seed=1)
    old = first.push_to_hub(REPO, token=OWNER).oid
    HfApi(token=OWNER).create_tag(REPO, tag="v1")
    branch = second.push_to_hub(REPO, token=OWNER, revision="trial").oid
    assert stand_in.repositories[REPO].at("main").oid == old
    for revision, commit in (("v1", old), ("trial", branch), ("main", old)):
        assert origin(attach(revision=revision))["revision"] == commit
    assert torch.equal(logits(attach(revision="trial")), logits(second))


def test_a_push_between_two_downloads_does_not_mix_two_commits(stand_in, monkeypatch, tmp_path):
    first, second = guarded(), guarded(seed=1, num_features=5)
    old = first.push_to_hub(REPO, token=OWNER).oid
    resolve, pushed = type(stand_in).resolve, []

    def and_then_push(hub, call):
        found = resolve(hub, call)
        if hub.requests[-1][0] == "GET" and call.path == "adapter_config.json" and not pushed:
            pushed.append(True)
            second.push_to_hub(REPO, token=OWNER)
        return found

    monkeypatch.setattr(type(stand_in), "resolve", and_then_push)
    found = attach(cache_dir=tmp_path)  # the other machine's push locks the files of its own cache
    assert pushed
    assert origin(found)["revision"] == old
    assert torch.equal(logits(found), logits(first))


@pytest.mark.parametrize("revision", ["absent", "c" * 40])
def test_a_revision_that_is_not_there_is_named(stand_in, revision):
    guarded().push_to_hub(REPO, token=OWNER)
    with pytest.raises(GuardrailError, match=rf"me/forget .*'{revision}'"):
        attach(revision=revision)


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    guarded().save_pretrained(tmp_path)
    with pytest.raises(GuardrailError, match="revision='main'"):
        attach(tmp_path, revision="main")
