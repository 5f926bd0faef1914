"""The script that trained the demo's SAE uses the package's training; here on a tiny model."""

import argparse
import importlib
import json

import pytest
import torch
from oracles import oracle
from pages import ROOT
from tiny_topic import tiny_parts, tiny_tokenizer, topic_texts

from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.training.rows import rows_of_texts


@pytest.mark.slow
def test_its_training_writes_an_sae_in_sixteen_bits_that_loads(tmp_path, monkeypatch):
    oracle("sae_lens")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script = importlib.import_module("train_demo_sae")
    model = tiny_parts()[0]
    rows = rows_of_texts(tiny_tokenizer(), topic_texts("retain", 300, words=24), script.SEQUENCE_LENGTH)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/sources.json").write_text(json.dumps(["wiki"] * len(rows)))
    args = argparse.Namespace(
        work=tmp_path / "work", output=tmp_path / "sae", layer=1, seed=0, d_sae=64, k=8, epochs=2.0, batch_size=64,
        learning_rate=3e-3, model_name="tiny", prepend_bos=True,
    )  # fmt: skip
    script.train(model, rows.numpy(), args)
    sae = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    exact = SparseAutoencoder.from_pretrained(tmp_path / "work/float32")
    assert (sae.layer, sae.d_sae, sae.architecture) == (1, 64, "batchtopk")
    torch.testing.assert_close(sae.W_enc, exact.W_enc.half().float())
    assert torch.equal(sae.threshold, exact.threshold)
    config = json.loads((tmp_path / "sae/cfg.json").read_text())
    assert config["metadata"]["model_name"] == "tiny"
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    training = json.loads((tmp_path / "work/training.json").read_text())
    assert training["samples"] > training["tokens"]
