"""An SAE from the Hub, through the real `huggingface_hub` and a stand-in of the Hub's interface."""

import pytest
import torch
from hub_requests import OWNER, READER, STRANGER
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from sae_folders import write_gemma_scope_2

from sae_unlearn.sae import SAEFormatError, SparseAutoencoder


REPO = "me/sae"
SUBFOLDER = "resid_post/layer_9_width_16k_l0_small"


@pytest.fixture
def commit(stand_in, tmp_path):
    """The commit of a repository with one SAE and another file."""
    write_gemma_scope_2(tmp_path / "served" / SUBFOLDER, config={"hf_hook_point_in": "model.layers.9.output"})
    (tmp_path / "served/other").mkdir()
    (tmp_path / "served/other/model.bin").write_bytes(b"not wanted")
    api = HfApi(token=OWNER)
    api.create_repo(REPO)
    oid = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "served").oid
    stand_in.requests.clear()
    return oid


def load(repo_id=REPO, subfolder=SUBFOLDER, **kwargs):
    return SparseAutoencoder.from_pretrained(repo_id, subfolder=subfolder, **kwargs)


def test_only_the_files_of_the_sae_are_downloaded_and_the_commit_is_recorded(stand_in, commit):
    sae = load()
    asked = [path.split("/resolve/")[1].split("/", 1) for _, path in stand_in.requests if "/resolve/" in path]
    assert {name for _, name in asked} == {f"{SUBFOLDER}/config.json", f"{SUBFOLDER}/params.safetensors"}
    assert len({name for revision, name in asked if revision == "main"}) == 1  # from which the cache knows its commit
    assert {revision for revision, _ in asked} == {"main", commit}
    assert (sae.source["id"], sae.source["revision"], sae.layer) == (REPO, commit, 9)


@pytest.mark.parametrize("revision", ["main", "commit"])
def test_what_was_loaded_once_is_there_without_the_hub(stand_in, commit, revision):
    kwargs = {"revision": commit if revision == "commit" else "main"}
    before = load(**kwargs)
    stand_in.stop()
    for again in (load(**kwargs), load(**kwargs, local_files_only=True)):
        assert again.source["revision"] == commit
        assert torch.equal(again.W_enc, before.W_enc)


def test_a_pinned_commit_is_honoured_after_a_newer_push(stand_in, commit, tmp_path):
    before = load()
    newer = SparseAutoencoder(before.W_enc + 1, before.b_enc, before.W_dec, before.b_dec, architecture="standard")
    newer.save_pretrained(tmp_path / "newer" / SUBFOLDER)
    api = HfApi(token=OWNER)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "newer", delete_patterns="*")
    assert torch.equal(load(revision=commit).W_enc, before.W_enc)
    assert torch.equal(load().W_enc, before.W_enc + 1)


def test_nothing_is_downloaded_for_a_wrong_subfolder(stand_in, commit):
    with pytest.raises(SAEFormatError, match=f"subfolder='{SUBFOLDER}'"):
        load(subfolder="resid_post/layer_9_width_16k")
    assert stand_in.downloads() == []


def test_absent_and_private_repositories_and_revisions_are_the_hub_s_own_errors(stand_in, commit):
    with pytest.raises(RepositoryNotFoundError):
        load("me/absent")
    with pytest.raises(RevisionNotFoundError):
        load(revision="absent")
    stand_in.repositories[REPO].private = True
    for token in (None, STRANGER):
        with pytest.raises(RepositoryNotFoundError):
            load(token=token)
    assert load(token=READER).source["revision"] == commit


def test_an_interrupted_download_can_be_repeated(stand_in, commit):
    stand_in.break_at = "GET /storage/"
    with pytest.raises(Exception, match=r"(?i)disconnected|connection|not in the cache"):
        load()
    stand_in.break_at = None
    assert load().source["revision"] == commit
