"""Loading from the Hub's cache at a pinned commit, and saving whole or not at all."""

import hashlib
import json
import os
import pathlib

import pytest
import torch
from family_folders import QWEN, write_qwen_scope
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_folders import residual, tensors, tiny, write_gemma_scope, write_saelens

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder


COMMIT, OLD_COMMIT = "a" * 40, "b" * 40
SUBFOLDER = "layer_3/width_16k/average_l0_142"


def add_to_cache(cache, repo_id, commit, folder, ref=None):
    """Puts the files below `folder` into a Hub cache as a download would: blobs, links to them, and a ref."""
    storage = cache / ("models--" + repo_id.replace("/", "--"))
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = storage / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = storage / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / ref).write_text(commit)


@pytest.fixture
def cache(tmp_path):
    """A cache with two commits of one repository, whose weights differ."""
    write_gemma_scope(tmp_path / "new" / SUBFOLDER)
    write_gemma_scope(tmp_path / "old" / SUBFOLDER, tensors(seed=5))
    add_to_cache(tmp_path / "cache", "google/gemma-scope-2b-pt-res", COMMIT, tmp_path / "new", ref="main")
    add_to_cache(tmp_path / "cache", "google/gemma-scope-2b-pt-res", OLD_COMMIT, tmp_path / "old", ref="v1")
    return tmp_path / "cache"


def from_hub(cache, repo_id="google/gemma-scope-2b-pt-res", subfolder=SUBFOLDER, **kwargs):
    return SparseAutoencoder.from_pretrained(
        repo_id, subfolder=subfolder, cache_dir=cache, local_files_only=True, **kwargs
    )


def test_one_file_of_a_cached_repository_is_an_sae_too(tmp_path):
    write_qwen_scope(tmp_path / "new", layers=(4, 9))
    add_to_cache(tmp_path / "cache", f"Qwen/{QWEN}", COMMIT, tmp_path / "new", ref="main")
    sae = from_hub(tmp_path / "cache", f"Qwen/{QWEN}", subfolder="layer9.sae.pt")
    assert (sae.layer, sae.k, sae.source["revision"]) == (9, 3, COMMIT)
    with pytest.raises(SAEFormatError, match=r"mean subfolder='layer4\.sae\.pt' or subfolder='layer9\.sae\.pt'"):
        from_hub(tmp_path / "cache", f"Qwen/{QWEN}", subfolder=None)


def test_a_cached_repository_is_loaded_and_its_commit_recorded(cache):
    sae = from_hub(cache)
    assert torch.equal(sae.W_enc, tensors()["W_enc"])
    assert sae.layer == 3
    assert sae.source == {
        "id": "google/gemma-scope-2b-pt-res",
        "revision": COMMIT,
        "subfolder": SUBFOLDER,
        "architecture": "jumprelu",
        "format": "gemma_scope",
        "sha256": hashlib.sha256((cache.parent / "new" / SUBFOLDER / "params.npz").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize("revision", ["v1", OLD_COMMIT])
def test_a_revision_is_pinned(cache, revision):
    sae = from_hub(cache, revision=revision)
    assert sae.source["revision"] == OLD_COMMIT
    assert torch.equal(sae.W_enc, tensors(seed=5)["W_enc"])


def test_the_repository_names_the_place_that_is_read(cache, tmp_path):
    add_to_cache(cache, "google/gemma-scope-2b-pt-mlp", COMMIT, tmp_path / "new", ref="main")
    with pytest.raises(SAEFormatError, match=r"gemma-scope-2b-pt-mlp.* mlp SAE"):
        from_hub(cache, "google/gemma-scope-2b-pt-mlp")


def test_a_wrong_subfolder_of_a_repository_gets_a_hint(cache):
    with pytest.raises(SAEFormatError, match=f"subfolder='{SUBFOLDER}'"):
        from_hub(cache, subfolder="layer_3/width_16k/average_l0_14")


@pytest.mark.parametrize("kwargs", [{"repo_id": "me/absent"}, {"revision": "absent"}, {"revision": "c" * 40}])
def test_what_is_not_in_the_cache_is_named_when_offline(cache, kwargs):
    with pytest.raises(LocalEntryNotFoundError, match=r"(me/absent|gemma-scope-2b-pt-res) at .*HF_HUB_OFFLINE"):
        from_hub(cache, **kwargs)


def test_a_path_that_is_not_there_is_no_repository(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/absent .*subfolder="):
        SparseAutoencoder.from_pretrained(tmp_path / "absent")


def test_a_file_in_place_of_a_folder_and_a_revision_of_a_folder_are_refused(tmp_path):
    folder = write_saelens(tmp_path, tensors())
    with pytest.raises(SAEFormatError, match=r"/cfg\.json "):
        SparseAutoencoder.from_pretrained(folder / "cfg.json")
    with pytest.raises(UnlearnError) as caught:
        SparseAutoencoder.from_pretrained(folder, revision="main")
    assert caught.value.subject == "revision"


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saving_and_loading_changes_nothing(tmp_path, architecture, dtype):
    sae = tiny(architecture, dtype, layer=9)
    sae.save_pretrained(tmp_path / "new" / "folder")
    again = SparseAutoencoder.from_pretrained(tmp_path / "new" / "folder", dtype=dtype)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in sae.state_dict().items())
    assert (again.architecture, again.layer, again.k) == (architecture, 9, sae.k)
    assert torch.equal(again(residual(4)), sae(residual(4)))
    assert json.loads((tmp_path / "new/folder/cfg.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_computed_in_float32(tmp_path, dtype):
    tiny(dtype=dtype).save_pretrained(tmp_path)
    sae = SparseAutoencoder.from_pretrained(tmp_path)
    assert sae.dtype == torch.float32
    assert torch.equal(sae.W_enc, tiny(dtype=dtype).W_enc.float())
    assert sae.layer is None


def test_saving_over_the_folder_it_was_loaded_from_is_safe(tmp_path):
    tiny().save_pretrained(tmp_path)
    sae = SparseAutoencoder.from_pretrained(tmp_path)
    sae.save_pretrained(tmp_path)
    assert torch.equal(SparseAutoencoder.from_pretrained(tmp_path).W_enc, sae.W_enc)


@pytest.mark.parametrize(
    ("what", "error", "told"),
    [("mkdir", KeyboardInterrupt, KeyboardInterrupt), ("write_text", OSError(28, "No space left"), UnlearnError)],
)
def test_a_save_that_fails_leaves_the_old_files_and_nothing_else(what, error, told, tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(pathlib.Path, what, fails)
    with pytest.raises(told):
        tiny("topk").save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_save_cut_short_at_its_end_leaves_the_old_files(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny("topk").save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_saving_onto_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="/file "):
        tiny().save_pretrained(tmp_path / "file")


def test_weights_that_share_their_memory_are_saved_each_for_itself(tmp_path):
    square, zeros = torch.eye(8), torch.zeros(8)
    sae = SparseAutoencoder(square, zeros, square, zeros, threshold=torch.ones(8))
    sae.save_pretrained(tmp_path)
    loaded = SparseAutoencoder.from_pretrained(tmp_path)
    assert all(torch.equal(getattr(sae, name), getattr(loaded, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
