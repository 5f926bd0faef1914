"""An SAE's way to the Hub and back, through the real `huggingface_hub` and a stand-in of the Hub's interface."""

import pytest
import torch
from hub_requests import OWNER, READER, STRANGER
from sae_folders import residual, tiny

from sae_unlearn import GuardrailError, SparseAutoencoder, UnlearnError


REPO = "me/sae"
FILES = ["cfg.json", "sae_weights.safetensors"]


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_pushed_and_loaded_by_name_it_computes_the_same_bits_and_knows_its_commit(stand_in, architecture):
    sae = tiny(architecture, layer=3)
    commit = sae.push_to_hub(REPO, token=OWNER)
    assert sorted(stand_in.repositories[REPO].at("main").files) == FILES
    again = SparseAutoencoder.from_pretrained(REPO)
    h = residual(2, 5)
    assert torch.equal(again.encode(h), sae.encode(h))
    assert torch.equal(again(h), sae(h))
    assert again.layer == 3
    assert (again.source["id"], again.source["revision"]) == (REPO, commit.oid)


def test_several_saes_share_a_repository_whose_other_files_stay(stand_in):
    first, second = tiny(layer=3), tiny("standard", layer=4)
    first.push_to_hub(REPO, subfolder="layer_3", token=OWNER)
    second.push_to_hub(REPO, subfolder="layer_4/", token=OWNER)
    files = stand_in.repositories[REPO].at("main").files
    assert sorted(files) == [f"layer_{layer}/{name}" for layer in (3, 4) for name in FILES]
    for sae, place in ((first, "layer_3"), (second, "layer_4")):
        again = SparseAutoencoder.from_pretrained(REPO, subfolder=place)
        assert torch.equal(again.W_enc, sae.W_enc)
        assert again.layer == sae.layer


def test_a_second_push_is_one_commit_with_its_message_and_the_first_stays_pinned(stand_in):
    first = tiny(layer=3)
    pinned = first.push_to_hub(REPO, token=OWNER).oid
    changed = SparseAutoencoder(first.W_enc + 1, first.b_enc, first.W_dec, first.b_dec, architecture="standard")
    before = len(stand_in.repositories[REPO].commits)
    changed.push_to_hub(REPO, token=OWNER, commit_message="One up", commit_description="all of W_enc")
    repository = stand_in.repositories[REPO]
    assert len(repository.commits) == before + 1
    assert (repository.at("main").message, repository.at("main").description) == ("One up", "all of W_enc")
    assert torch.equal(SparseAutoencoder.from_pretrained(REPO).W_enc, first.W_enc + 1)
    assert torch.equal(SparseAutoencoder.from_pretrained(REPO, revision=pinned).W_enc, first.W_enc)


def test_a_branch_and_a_pull_request_leave_main_as_it_was(stand_in):
    sae = tiny()
    oid = sae.push_to_hub(REPO, token=OWNER, revision="trial").oid
    sae.push_to_hub(REPO, token=OWNER, create_pr=True)
    repository = stand_in.repositories[REPO]
    assert repository.at("main").files == {}
    assert repository.at("trial").oid == oid
    assert sorted(repository.at("refs/pr/1").files) == FILES
    with pytest.raises(UnlearnError) as caught:
        sae.push_to_hub(REPO, token=OWNER, revision="trial", create_pr=True)
    assert caught.value.subject == "revision"
    assert not isinstance(caught.value, GuardrailError)


def test_a_new_repository_is_private_if_it_is_asked_for(stand_in):
    tiny().push_to_hub(REPO, token=OWNER, private=True)
    assert stand_in.repositories[REPO].private
    assert SparseAutoencoder.from_pretrained(REPO, token=OWNER).d_in == tiny().d_in


@pytest.mark.parametrize("token", [None, READER, STRANGER])
def test_without_the_right_to_write_nothing_is_committed_and_the_repository_is_named(stand_in, token):
    with pytest.raises(UnlearnError, match=REPO):
        tiny().push_to_hub(REPO, token=token or False)
    assert stand_in.repositories == {}


def test_a_connection_that_breaks_commits_nothing(stand_in):
    tiny().push_to_hub(REPO, token=OWNER)
    before = stand_in.repositories[REPO].at("main").oid
    stand_in.break_at = "POST .*/commit/"
    with pytest.raises(UnlearnError, match=REPO):
        tiny("standard").push_to_hub(REPO, token=OWNER)
    assert stand_in.repositories[REPO].at("main").oid == before


@pytest.mark.parametrize("subfolder", ["../other", "/etc"])
def test_a_folder_outside_of_the_repository_is_refused_before_anything_is_made(stand_in, subfolder):
    with pytest.raises(UnlearnError, match="subfolder"):
        tiny().push_to_hub(REPO, subfolder=subfolder, token=OWNER)
    assert stand_in.repositories == {}
