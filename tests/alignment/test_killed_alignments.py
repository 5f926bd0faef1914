"""Kills while an alignment is trained and saved: afterwards there are whole adapters, old or new."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from moments import MOMENTS
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from tiny_entities import parts, settings

from sae_unlearn import SAEAlignmentTrainer


CONFIG, WEIGHTS = CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME


# ----------------------------------------------------------------------------------------------------------- alignments


def trainer(folder: Path, **options: object) -> SAEAlignmentTrainer:
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **parts())


def adapter_in(folder: Path, **saved: Path) -> str:
    """Which of the `saved` adapters a folder holds, whole; "none" where PEFT would find none."""
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        return "none"
    config, weights = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    for name, other in saved.items():
        expected = load_file(other / WEIGHTS)
        assert weights.keys() == expected.keys()
        assert config.keys() == json.loads((other / CONFIG).read_text()).keys()
        if all(torch.equal(weights[key], tensor) for key, tensor in expected.items()):
            return name
    raise AssertionError("a mixture")


@pytest.mark.slow
@pytest.mark.parametrize("before", ["old", "none"])
def test_a_kill_while_the_trainer_saves_leaves_the_old_adapter_or_the_new_one(before, tmp_path):
    it, folder = trainer(tmp_path / "out"), tmp_path / "adapter"
    it.save_model(str(tmp_path / "old"))
    with torch.no_grad():
        for name, parameter in it.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(1.0)
    it.save_model(str(tmp_path / "new"))
    if before == "old":
        shutil.copytree(tmp_path / "old", folder)
        os.link(folder / WEIGHTS, tmp_path / "linked")
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        it.save_model(str(folder))
    found = [adapter_in(left, old=tmp_path / "old", new=tmp_path / "new") for left in [*copies, folder]]
    assert len(found) > 5
    assert set(found) == {before, "new"}
    assert found == sorted(found, key=lambda name: name == "new")  # once it is the new one it stays so
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in (tmp_path / "new").iterdir())
    if before == "old":  # replaced, and not written over: that is done by a library whose writing nothing tells of
        assert (tmp_path / "linked").read_bytes() == (tmp_path / "old" / WEIGHTS).read_bytes()


def test_a_kill_between_two_configs_leaves_no_mixture(tmp_path):
    """PEFT would put weights of one under the alpha of another, without a word."""
    for name, alpha in (("old", 4), ("new", 32)):
        it = trainer(tmp_path / "out")
        it.model.peft_config["default"].lora_alpha = alpha
        with torch.no_grad():
            for parameter_name, parameter in it.model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.add_(alpha)
        it.save_model(str(tmp_path / name))
    folder = tmp_path / "adapter"
    shutil.copytree(tmp_path / "old", folder)
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        it.save_model(str(folder))
    found = []
    for left in [*copies, folder]:
        name = adapter_in(left, old=tmp_path / "old", new=tmp_path / "new")
        if name != "none":
            assert (left / CONFIG).read_text() == (tmp_path / name / CONFIG).read_text()
        found.append(name)
    assert found == sorted(found, key=["old", "none", "new"].index)
    assert {found[0], found[-1]} == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("before", ["old", "none"])
def test_a_kill_while_it_trains_leaves_whole_adapters_in_its_checkpoints(before, tmp_path):
    folder, options = tmp_path / "out", {"save_strategy": "steps", "save_steps": 2}
    if before == "old":
        trainer(folder, seed=2, **options).train()
        shutil.copytree(folder, tmp_path / "old")
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        trainer(folder, **options).train()
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        saved = {"new": folder / checkpoint} | ({"old": tmp_path / "old" / checkpoint} if before == "old" else {})
        found = [adapter_in(left / checkpoint, **saved) for left in [*copies, folder]]
        assert set(found) == {before, "new"}
        assert found == sorted(found, key=lambda name: name == "new")
