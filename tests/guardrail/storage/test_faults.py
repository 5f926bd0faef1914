"""Kills and full disks while a guardrail is saved: afterwards there is the old guardrail or the new one."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from moments import MOMENTS
from safetensors.torch import load_file, save_file
from zoo import base_model, random_sae

from sae_unlearn import EntitySet, GuardrailError, UnlearnError, attach_guardrail, fit_guardrail
from sae_unlearn.files import atomic as staging
from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, WEIGHTS_NAME
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


def fit(features, threshold, seed=0):
    model, sae = base_model("llama"), random_sae(40, seed)
    return fit_guardrail(model, None, sae, features=features, threshold=threshold, clamp_value=-6.0)


@pytest.fixture(scope="module")
def old_and_new(tmp_path_factory):
    """Two guardrails, of other features and another threshold, and the folders in which each was saved."""
    models = {"old": fit([3, 8, 21], 0.15), "new": fit([5, 9], 0.3, seed=1)}
    root = tmp_path_factory.mktemp("saved")
    for name, model in models.items():
        model.save_pretrained(root / name)
    return models, root


def which(folder, root):
    """ "old" or "new": the guardrail that `folder` holds, whole; "none" where there is no guardrail."""
    try:
        found = GuardrailFolder.open(folder).artefact()
    except GuardrailError as error:
        if "has no adapter_" not in str(error):
            raise  # a broken one
        return "none"
    assert found.damage is None
    for name in ("old", "new"):
        expected = GuardrailFolder.open(root / name).artefact()
        if found.config.to_dict() == expected.config.to_dict():
            assert all(torch.equal(found.tensors[key], expected.tensors[key]) for key in expected.tensors)
            return name
    raise AssertionError("a mixture")


@pytest.mark.parametrize("before", ["old", "none"])
def test_a_kill_at_any_moment_of_saving_leaves_the_old_one_or_the_new_one(before, old_and_new, tmp_path):
    models, root = old_and_new
    folder = tmp_path / "guard"
    if before == "old":
        shutil.copytree(root / "old", folder)
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        models["new"].save_pretrained(folder)
    found = [which(left, root) for left in [*copies, folder]]
    assert len(found) > 5
    assert set(found) == {before, "new"}
    assert found == sorted(found, key=lambda name: name == "new")  # once it is the new one it stays so
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG_NAME, WEIGHTS_NAME]


def test_between_the_two_files_the_new_one_is_attached_from_what_the_save_left(old_and_new, tmp_path, monkeypatch):
    models, root = old_and_new
    folder = tmp_path / "guard"
    shutil.copytree(root / "old", folder)
    original = os.replace

    def killed(source, target):
        if str(target).endswith(WEIGHTS_NAME):
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(staging.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        models["new"].save_pretrained(folder)
    monkeypatch.undo()
    assert (folder / WEIGHTS_NAME).read_bytes() == (root / "old" / WEIGHTS_NAME).read_bytes()
    assert which(folder, root) == "new"
    ids = torch.randint(2, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = attach_guardrail(base_model("llama"), folder)(input_ids=ids).logits
        assert torch.equal(found, models["new"](input_ids=ids).logits)
    models["old"].save_pretrained(folder)  # and saving again mends it
    assert which(folder, root) == "old"


def test_a_mixture_of_two_saves_is_refused(old_and_new, tmp_path):
    _, root = old_and_new
    other = fit([3, 8, 21], 0.15, seed=2)
    other.save_pretrained(tmp_path / "guard")
    shutil.copy(root / "old" / WEIGHTS_NAME, tmp_path / "guard")
    with pytest.raises(GuardrailError, match=r"adapter_model\.safetensors .*SHA-256.*weights_sha256"):
        attach_guardrail(base_model("llama"), tmp_path / "guard")


@contextmanager
def small_disk():
    """No file may grow beyond 1000 bytes, as on a disk that is full. It holds for pytest's own output, too, where that
    goes to a file, so nothing but the save may run under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("before", ["old", "none"])
def test_a_full_disk_is_a_clear_error_and_leaves_what_was_there(before, old_and_new, tmp_path):
    models, root = old_and_new
    folder = tmp_path / "guard"
    if before == "old":
        folder.mkdir()
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            os.link(root / "old" / name, folder / name)
    with pytest.raises(GuardrailError, match=r"/guard .*os error 27"), small_disk():
        models["new"].save_pretrained(folder)
    assert which(folder, root) == before
    assert not list(folder.glob(".saving-*"))


def test_a_folder_that_cannot_be_written_is_a_clear_error(old_and_new, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GuardrailError, match=r"/file .*Errno 20"):
        old_and_new[0]["new"].save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("which_file", ["sae_weights.safetensors", "cfg.json"])
def test_an_sae_that_cannot_be_written_leaves_the_old_file(which_file, tmp_path, monkeypatch):
    random_sae(40).save_pretrained(tmp_path)
    before = (tmp_path / which_file).read_bytes()
    original = os.replace

    def full(source, target):
        if str(target).endswith(which_file):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="Errno 28"):
        random_sae(40, seed=1).save_pretrained(tmp_path)
    assert (tmp_path / which_file).read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_saves_that_never_ended_are_cleared_away_in_time(old_and_new, tmp_path, monkeypatch):
    stage = tmp_path / "guard" / ".saving-0123"
    stage.mkdir(parents=True)
    old_and_new[0]["new"].save_pretrained(tmp_path / "guard")
    assert stage.exists()  # it may be another process's
    monkeypatch.setattr(staging, "_ABANDONED", -1.0)
    old_and_new[0]["new"].save_pretrained(tmp_path / "guard")
    assert not stage.exists()


def test_a_kill_between_the_files_is_mended_however_large_the_old_weights_were(old_and_new, tmp_path):
    root, folder = old_and_new[1], tmp_path / "guard"
    shutil.copytree(root / "new", folder)
    (folder / ".saving-0123").mkdir()
    (folder / WEIGHTS_NAME).rename(folder / ".saving-0123" / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).write_bytes(bytes(3 * 2**20))
    assert which(folder, root) == "new"


def test_weights_that_are_replaced_while_they_are_read_are_those_that_were_checked(old_and_new, tmp_path, monkeypatch):
    root, folder, opened = old_and_new[1], tmp_path / "guard", os.open
    shutil.copytree(root / "old", folder)
    other = load_file(folder / WEIGHTS_NAME)
    save_file({name: 2 * tensor for name, tensor in other.items()}, tmp_path / "other")

    def replaced(path, *args, **kwargs):
        descriptor = opened(path, *args, **kwargs)
        if path == folder / WEIGHTS_NAME and (tmp_path / "other").exists():
            os.replace(tmp_path / "other", path)
        return descriptor

    monkeypatch.setattr(os, "open", replaced)
    assert which(folder, root) == "old"
    assert not (tmp_path / "other").exists()


def test_a_save_that_fails_half_way_leaves_the_old_files(tmp_path):
    (tmp_path / "a").write_text("old")

    def half() -> None:
        with staging.staged(tmp_path) as stage:
            (stage / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_full_disk_leaves_the_entities_that_were_saved_before(tmp_path, monkeypatch):
    path = tmp_path / "people.json"
    EntitySet([{"entity": "Ann", "entity_type": "person"}]).to_json(path)
    before = path.read_text()
    write = Path.write_text

    def full(self, text, **kwargs):
        write(self, text[:5], **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UnlearnError, match="Errno 28"):
        EntitySet([{"entity": "Bob", "entity_type": "person"}]).to_json(path)
    assert [file.name for file in tmp_path.iterdir()] == ["people.json"]
    assert path.read_text() == before
