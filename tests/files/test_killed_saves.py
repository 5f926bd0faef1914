"""Kills while files are saved: files of two saves never stand next to each other."""

import pytest
import torch
from moments import MOMENTS

from sae_unlearn import Entity, EntitySet, LabeledEntities, SparseAutoencoder
from sae_unlearn.alignment.labeling.answer_log import Asked
from sae_unlearn.files.atomic import staged, write_whole


@pytest.mark.parametrize("what", ["an SAE", "labeled entities", "any files"])
def test_files_of_two_saves_never_stand_beside_each_other(what, tmp_path):
    def save(which):
        if what == "an SAE":
            weights = torch.full((4, 4), float(which))
            SparseAutoencoder(weights, weights[0], weights, weights[0], architecture="topk", k=which).save_pretrained(
                tmp_path / "it"
            )
        elif what == "labeled entities":
            entity = Entity("w2", "thing", {"colour": "w3"})
            known, unknown = (EntitySet([entity]), EntitySet()) if which == 1 else (EntitySet(), EntitySet([entity]))
            answers = (Asked("w2", "thing", "colour", "w4", ("w3",), ("w3",), which),)
            LabeledEntities(known, unknown, EntitySet(), answers, {}).save(tmp_path / "it")
        else:
            with staged(tmp_path / "it", key="key") as stage:
                (stage / "key").write_text(str(which)), (stage / "other").write_text(str(which))

    def held(folder):
        files = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
        key = {"an SAE": "cfg.json", "labeled entities": "answers.jsonl", "any files": "key"}[what]
        return files if key in files else None

    save(1)
    old = held(tmp_path / "it")
    with MOMENTS.watch(tmp_path / "it", tmp_path / "copies") as copies:
        save(2)
    new = held(tmp_path / "it")
    found = [held(copied) for copied in copies]
    assert len(found) > 3
    assert all(files in (None, old, new) for files in found)
    assert found[0] == old != new


def test_a_save_of_another_process_may_end_while_old_ones_are_looked_for(tmp_path, monkeypatch):
    """Processes that share a folder each have a stage there, which can go between its listing and a look at its age."""
    gone = tmp_path / ".saving-0123456789abcdef"
    listed = type(tmp_path).glob

    def glob(path, pattern):
        return [*listed(path, pattern), gone]

    monkeypatch.setattr(type(tmp_path), "glob", glob)
    write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
