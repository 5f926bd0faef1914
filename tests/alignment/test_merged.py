"""An alignment that was merged into its model is a model like any other."""

import subprocess
import sys

import pytest
import torch
from tiny_entities import parts, settings
from zoo import token_ids

from sae_unlearn import SAEAlignmentTrainer


LOADED = """
import sys

import torch
from transformers import AutoModelForCausalLM

folder, ids = sys.argv[1], torch.load(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder).eval()
assert not {"sae_unlearn", "peft"} & set(sys.modules), "nothing but transformers"
logits = model(ids, use_cache=False).logits
exported = torch.export.export(model, (ids,), {"use_cache": False}, strict=False)
torch.export.save(exported, sys.argv[3])
torch.save(logits, sys.argv[4])
"""


@pytest.mark.slow
def test_a_merged_model_loads_with_transformers_alone_and_is_exported(tmp_path):
    trainer = SAEAlignmentTrainer(args=settings(tmp_path / "out"), **parts())
    ids = token_ids(2, 9)
    before = parts()["model"].eval()(ids).logits
    trainer.train()
    tuned = trainer.model.eval()(ids).logits.detach()
    assert (tuned - before).abs().max() > 1e-3
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert "model.safetensors" in names
    assert not any("adapter" in name for name in names)
    torch.save(ids, tmp_path / "ids.pt")
    files = [str(tmp_path / name) for name in ("merged", "ids.pt", "model.pt2", "logits.pt")]
    subprocess.run([sys.executable, "-c", LOADED, *files], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), tuned, rtol=0, atol=1e-5)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(exported(ids, use_cache=False).logits, tuned, rtol=0, atol=1e-5)
