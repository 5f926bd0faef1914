"""Saved files can be read by whom the umask lets read them, weights as well as configs."""

import os
import stat
import sys

import pytest
from zoo import base_model, guarded, random_sae

from sae_unlearn import attach_guardrail, save_bundle
from sae_unlearn.files.atomic import staged, write_whole


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=[0o022, 0o077, 0o002])
def usual(request):
    """The mode of a new file under an umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_a_saved_guardrail_a_bundle_and_an_sae_have_the_mode_of_a_new_file(usual, tmp_path):
    guarded("llama").save_pretrained(tmp_path / "by-peft")
    model = attach_guardrail(base_model("llama"), tmp_path / "by-peft")
    model.save_pretrained(tmp_path / "guardrail")
    model.save_pretrained(tmp_path / "guardrail")  # over files that are there
    save_bundle(model, tmp_path / "bundle")
    random_sae(16).save_pretrained(tmp_path / "sae")
    write_whole(tmp_path / "text" / "a.txt", "a")
    for name in ("guardrail", "bundle", "sae", "text"):
        found = modes(tmp_path / name)
        assert found
        assert set(found.values()) == {usual}, found


def test_files_that_only_their_owner_could_read_get_it_too(usual, tmp_path):
    with staged(tmp_path / "folder") as stage:
        (stage / "weights").touch(mode=0o600)
    assert modes(tmp_path / "folder") == {"weights": usual}
